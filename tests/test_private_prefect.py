"""The Prefect server that a command starts for itself: a real one, in a workspace of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from pipeline.locks import exclusive

FLOW = """
import json, sys
from pathlib import Path
from pipeline import private_prefect
wait = private_prefect.enter(Path(sys.argv[1]))
from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client

@flow
def answer():
    get_run_logger().info("computing")
    return 42

wait()
print(json.dumps(answer()))
with get_client(sync_client=True) as client:
    [run] = client.read_flow_runs()
    print(run.state.type.value, client.api_url.host)
"""

STAY = """
import sys
from pathlib import Path
from pipeline import private_prefect
private_prefect.enter(Path(sys.argv[1]))()
print("ready", flush=True)
input()
"""

WAIT = """
import sys
from pathlib import Path
from pipeline import private_prefect
from pipeline.errors import ServerError
try:
    private_prefect.enter(Path(sys.argv[1]))()
except ServerError as error:
    sys.exit(f"ServerError: {error}")
"""


def test_a_flow_runs_in_the_workspace_whatever_the_shell_says_and_the_server_ends_with_it(tmp_path: Path):
    environment = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"}  # nothing listens there
    result = subprocess.run(
        [sys.executable, "-c", FLOW, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["42", "COMPLETED", "127.0.0.1"]
    # A run's own lines are for the pages; on a slow machine Prefect says that its last event is still on the way.
    assert [
        line for line in result.stderr.splitlines() if "EventsWorker - Still processing" not in line
    ] == []
    assert (tmp_path / ".prefixline/prefect/prefect.db").is_file()
    assert (tmp_path / ".prefixline/logs/private-prefect.log").read_text() == ""
    assert not [
        p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(tmp_path / ".prefixline/logs")
    ]


def test_the_server_of_a_killed_command_ends(tmp_path: Path):
    command = subprocess.Popen(
        [sys.executable, "-c", STAY, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert command.stdout is not None
    assert command.stdout.readline() == "ready\n"
    [server] = psutil.Process(command.pid).children()
    command.send_signal(signal.SIGKILL)
    command.wait()
    deadline = time.monotonic() + 30
    while server.is_running() and server.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_server_that_cannot_start_is_reported_with_the_end_of_its_log(tmp_path: Path):
    (tmp_path / ".prefixline/prefect").mkdir(parents=True)
    (tmp_path / ".prefixline/prefect/prefect.db").write_text("this is no database " * 100)
    result = subprocess.run(
        [sys.executable, "-c", WAIT, str(tmp_path)], capture_output=True, text=True, timeout=150, check=False
    )
    assert result.returncode == 1
    assert result.stderr.startswith("ServerError: Prefect's server ended by itself, with exit status 3")
    assert "file is not a database" in result.stderr


def test_a_server_waits_for_another_that_makes_the_database(tmp_path: Path):
    lock = tmp_path / ".prefixline/private-prefect.lock"
    with exclusive(lock):
        process = subprocess.Popen(
            [sys.executable, "-c", STAY, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        end = time.monotonic() + 120
        waiting: list[str] = []
        while time.monotonic() < end and not waiting and process.poll() is None:
            servers = psutil.Process(process.pid).children(recursive=True)
            waiting = [
                file.path for server in servers for file in server.open_files() if file.path == str(lock)
            ]
            time.sleep(0.1)
        assert waiting == [str(lock)]
        assert list(tmp_path.rglob("prefect.db")) == []
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert len(list(tmp_path.rglob("prefect.db"))) == 1
    process.communicate("\n", timeout=60)
    assert process.returncode == 0
