"""A Prefect server for one command, where none is up for the workspace.

Prefect would start one by itself, but it first imports its whole server into the command's own process, and then
waits. This one starts before anything is imported, so that server and command get ready side by side, and it ends
with the command even by kill -9.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import server_access
from pipeline.errors import ServerError
from pipeline.locks import exclusive
from pipeline.orphans import end_with_parent
from pipeline.ports import HOST, free_port

_EPHEMERAL = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
"""What Prefect sets for its own: no pages, and none of the services that fire schedules."""

_TIMEOUT_SECONDS = 240.0
_GRACE_SECONDS = 15.0


def enter(workspace: Path) -> Callable[[], None] | None:
    """`server_access.enter`, with a server of this process's own where none is up. Call it before Prefect is imported.

    Returns:
        What waits until the new server answers, to be called when everything else is ready; it raises
        ServerError where the server ended or took too long. None where the workspace's own server answers.

    Raises:
        UnreachableError: the workspace's own server runs and does not answer.
    """
    server_access.enter(workspace)
    if server_access.prefect_api(workspace) is not None:
        return None
    port = free_port()
    url = f"http://{HOST}:{port}/api"
    os.environ |= {"PREFECT_API_URL": url, "PREFECT_SERVER_EPHEMERAL_ENABLED": "false"}
    log = workspace / ".prefixline/logs/private-prefect.log"
    lock = workspace / ".prefixline/private-prefect.lock"
    log.parent.mkdir(parents=True, exist_ok=True)
    alive, held = os.pipe()  # `held` closes when this process ends
    with os.fdopen(alive, "rb") as theirs, log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.private_prefect", str(theirs.fileno()), str(port), str(lock)],
            cwd=log.parent,
            env={**os.environ, **_EPHEMERAL, "PYTHONSAFEPATH": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,  # Ctrl-C is for the command, which still has to report to it
        )
    # Registered before Prefect is imported, so that it runs after what Prefect sends at exit.
    atexit.register(_end, process, held)
    return lambda: _wait(process, f"{url}/health", log)


def _wait(process: subprocess.Popen[bytes], health: str, log: Path) -> None:
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while not server_access.answers(health):
        if process.poll() is not None:
            raise ServerError(
                f"Prefect's server ended by itself, with exit status {process.returncode}. The end of {log}:\n"
                f"{server_access.tail(log)}"
            )
        if time.monotonic() > deadline:
            raise ServerError(
                f"Prefect's server did not answer at {health} within {_TIMEOUT_SECONDS:.0f} s. The end of {log}:\n"
                f"{server_access.tail(log)}"
            )
        time.sleep(0.05)


def _end(process: subprocess.Popen[bytes], held: int) -> None:
    process.terminate()
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.close(held)  # kills the whole group
        process.wait()


def main(alive: str, port: str, lock: str) -> None:
    """Serve until asked to end, or until the process that started this one is gone."""
    end_with_parent(int(alive))
    import uvicorn

    class OneAfterTheOther(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            """Two servers that make the tables of one new database at once break each other's."""
            with exclusive(Path(lock)):
                await super().startup(sockets)

    config = uvicorn.Config(
        "prefect.server.api.server:create_app",
        factory=True,
        host=HOST,
        port=int(port),
        log_level="error",
        lifespan="on",
    )
    server = OneAfterTheOther(config)
    server.run()
    if not server.started:
        sys.exit(3)  # as uvicorn.run would end


if __name__ == "__main__":
    main(*sys.argv[1:])
