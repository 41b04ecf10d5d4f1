"""The servers of a workspace, MLflow's, Prefect's and the fork server: started together, ended together.

The first two listen on loopback, the third on a Unix socket (`pipeline.forkserver`); it only saves time, and all goes on
without it. How to reach them: `pipeline.server_access`.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from pipeline.environment import quiet_environment
from pipeline.errors import ServerError, WorkspaceError
from pipeline.ports import HOST, free_ports
from pipeline.server_access import answers, environment, is_server, mlflow_uri, tail
from pipeline.server_state import STATE_FILE, ProcessId, ServerRecord, ServersRecord, read_state
from pipeline.tracking.connection import MLFLOW_URI

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_GRACE_SECONDS = 15.0


def up(
    workspace: Path,
    *,
    mlflow_port: int = 5000,
    prefect_port: int = 4200,
    timeout: float = 240.0,
    say: Callable[[str], None],
) -> None:
    """Start both servers, wait until they answer, and stay until Ctrl-C, SIGTERM or SIGHUP; then end them.

    MLflow's stands on the database that `PREFIXLINE_MLFLOW_URI` names, if it does; where it names a server, none is started.

    Must be called from the main thread, which receives the signals.

    Args:
        workspace: the folder with params.yaml.
        mlflow_port: loopback port; 0 takes any free one.
        prefect_port: loopback port; 0 takes any free one.
        timeout: seconds each server may take until it answers.
        say: receives one line of progress at a time.

    Raises:
        WorkspaceError: `workspace` has no params.yaml, or its servers are already up.
        ServerError: a port is taken, a server did not answer in time, or one died (with its log's last
            lines). The other one is ended before this is raised.
    """
    workspace = workspace.resolve()
    if not (workspace / "params.yaml").is_file():
        raise WorkspaceError(
            f"{workspace} has no params.yaml; go to a workspace, or make one: prefixline init"
        )
    state = workspace / ".prefixline"
    with _only_one(state), _stop_requests() as stop, ExitStack() as cleanup:
        _end_leftovers(state, say)
        ports = free_ports({"mlflow": mlflow_port, "prefect": prefect_port})
        mlflow_at = mlflow_uri(workspace)
        if not is_server(mlflow_at) and not _make_database(state, mlflow_at, stop, say):
            return
        cleanup.callback((state / STATE_FILE).unlink, missing_ok=True)
        # Not in the workspace, nor where TMPDIR says: a socket's path has 107 characters at most. Only its owner may enter.
        sockets = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="prefixline-", dir="/tmp")))
        specifications = _specifications(
            workspace, mlflow_at, ports["mlflow"], ports["prefect"], sockets / "forks"
        )
        *answering, forks = (_start(each, cleanup) for each in specifications)
        own = {server.specification.title: server.record for server in answering}
        record = ServersRecord(
            ProcessId.of(os.getpid()), own.get("MLflow"), own["Prefect"], forks.record, ready=False
        )
        record.write(state)
        for server in answering:
            if not _wait_until_it_answers(server, answering, stop, timeout, say):
                return
        record.now_ready().write(state)
        say("Both servers are up. Ctrl-C ends them.")
        forking = True
        while not stop.wait(0.5):
            _raise_if_dead(answering)
            if forking and not forks.record.process.alive():
                forking = False
                say(
                    "the process that has the libraries imported is gone; stages import them by themselves, which takes "
                    f"3 s each. Start the servers again to have it back (log: {forks.specification.log})"
                )


def _make_database(state: Path, uri: str, stop: threading.Event, say: Callable[[str], None]) -> bool:
    """MLflow's database before its server starts, which would leave half of one if ended meanwhile.

    In a process of its own: MLflow would otherwise stay in this one's memory. False when asked to stop.
    """
    if uri.startswith("sqlite:"):
        if Path(uri.removeprefix("sqlite:///")).exists():
            return True
        say("making MLflow's database")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.tracking", (state / "mlartifacts").as_uri()],
        env={**os.environ, **quiet_environment(offline=False), MLFLOW_URI: uri},
        capture_output=True,
        text=True,
        check=False,
    )
    if stop.is_set():
        return False
    if done.returncode != 0:
        raise ServerError(f"MLflow's server cannot be started: {done.stderr.strip()[-2000:]}")
    return True


@dataclass(frozen=True)
class _Specification:
    title: str
    url: str
    health: str | None
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str]


@dataclass(frozen=True)
class _Server:
    specification: _Specification
    process: subprocess.Popen[bytes]
    record: ServerRecord


def _specifications(
    workspace: Path, mlflow_at: str, mlflow_port: int, prefect_port: int, forks: Path
) -> Iterator[_Specification]:
    state = workspace / ".prefixline"
    # Settings of other MLflow or Prefect installations in the user's shell must not lead data out of here.
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.lstrip("_").startswith(("MLFLOW_", "PREFECT_"))
    }
    common = {
        **inherited,
        **environment(workspace),
        "MLFLOW_ENABLE_AI_GATEWAY": "false",
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",
    }
    artifacts = (state / "mlartifacts").as_uri()
    url = f"http://{HOST}:{mlflow_port}"
    if not is_server(mlflow_at):
        yield _Specification(
            "MLflow",
            url,
            f"{url}/health",
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(mlflow_port)),
                *("--default-artifact-root", artifacts, "--artifacts-destination", artifacts),
                *("--workers", "1", "--uvicorn-opts", "--log-level warning"),
            ],
            state / "logs/mlflow.log",
            # Not on the command line, which is for all to read: it may hold a password.
            {**common, "MLFLOW_BACKEND_STORE_URI": mlflow_at},
        )
    url = f"http://{HOST}:{prefect_port}"
    yield _Specification(
        "Prefect",
        url,
        f"{url}/api/ready",
        [
            *(sys.executable, "-m", "prefect", "server", "start", "--host", HOST),
            *("--port", str(prefect_port), "--analytics-off", "--no-prompt"),
        ],
        state / "logs/prefect.log",
        {**common, "PREFECT_API_URL": f"{url}/api", "PREFECT_SERVER_EPHEMERAL_ENABLED": "false"},
    )
    yield _Specification(
        "fork",
        str(forks),
        None,
        [sys.executable, "-m", "pipeline.forkserver", str(forks)],
        state / "logs/forkserver.log",
        common,
    )


def _start(specification: _Specification, cleanup: ExitStack) -> _Server:
    """Start one server in a process group of its own, and have `cleanup` end that group."""
    specification.log.parent.mkdir(parents=True, exist_ok=True)
    with specification.log.open("wb") as log:
        process = subprocess.Popen(
            specification.command,
            cwd=specification.log.parent,
            env=specification.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    leader = ProcessId.of(process.pid)
    cleanup.callback(process.wait)
    cleanup.callback(_end_group, leader)
    return _Server(specification, process, ServerRecord(specification.url, leader))


def _end_group(leader: ProcessId) -> None:
    """End the group `leader` leads: SIGTERM, time to finish, SIGKILL for what is left.

    The leader must be alive, or not waited for yet: its number could be another's otherwise.
    """
    members = [leader, *(ProcessId.of(child) for child in _descendants(leader.pid))]
    _signal_group(leader.pid, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_SECONDS
    while any(member.alive() for member in members) and time.monotonic() < deadline:
        time.sleep(0.05)
    _signal_group(leader.pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _signal_group(group: int, number: signal.Signals) -> None:
    # A group that has ended already is what is wanted.
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _wait_until_it_answers(
    server: _Server,
    all_servers: Sequence[_Server],
    stop: threading.Event,
    timeout: float,
    say: Callable[[str], None],
) -> bool:
    """True once `server` answers; False when asked to stop before that."""
    specification = server.specification
    assert specification.health is not None
    started = told = time.monotonic()
    while not stop.wait(0.2):
        _raise_if_dead(all_servers)
        now = time.monotonic()
        if answers(specification.health):
            say(f"{specification.title} answers at {specification.url} (log: {specification.log})")
            return True
        if now - started > timeout:
            raise ServerError(
                f"{specification.title} did not answer at {specification.health} within {timeout:.0f} s. "
                f"The end of {specification.log}:\n{tail(specification.log)}"
            )
        if now - told >= 5:
            say(f"waiting for {specification.title} ({now - started:.0f} s)")
            told = now
    return False


def _raise_if_dead(servers: Sequence[_Server]) -> None:
    # Looked at without waiting for it, so that its number stays reserved until its group is ended.
    for server in servers:
        ended = os.waitid(os.P_PID, server.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is not None:
            how = "with exit status" if ended.si_code == os.CLD_EXITED else "by signal"
            log = server.specification.log
            raise ServerError(
                f"{server.specification.title} ended by itself, {how} {ended.si_status}. "
                f"The end of {log}:\n{tail(log)}"
            )


@contextmanager
def _only_one(state: Path) -> Iterator[None]:
    """Hold the workspace's lock; the system lets go of it when this process ends, however it ends."""
    state.mkdir(parents=True, exist_ok=True)
    with (state / "up.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            servers = read_state(state)
            if servers is None or not servers.ready:
                raise WorkspaceError(f"the servers of {state.parent} are being started already") from None
            raise WorkspaceError(
                f"the servers of {state.parent} are already up (process {servers.up.pid}): "
                + (f"MLflow at {servers.mlflow.url}, " if servers.mlflow else "")
                + f"Prefect at {servers.prefect.url}"
            ) from None
        yield


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that Ctrl-C, SIGTERM or a closed terminal sets, instead of interrupting anything."""
    stop = threading.Event()

    def request(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, request) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_leftovers(state: Path, say: Callable[[str], None]) -> None:
    """End servers whose `up` was killed before it could; the lock says that it no longer runs."""
    servers = read_state(state)
    if servers is None:
        return
    for title, server in (("MLflow", servers.mlflow), ("Prefect", servers.prefect), ("fork", servers.forks)):
        if server is not None and server.process.alive():
            say(f"ending the {title} server (process {server.process.pid}) that an earlier `up` left behind")
            _end_group(server.process)
    (state / STATE_FILE).unlink(missing_ok=True)
