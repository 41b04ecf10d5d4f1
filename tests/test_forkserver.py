"""The fork server: a module runs in a fork of a process that has the libraries, as it would in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline import forkserver

MODULE = """
import json, os, signal, sys, time
from pathlib import Path

def main(arguments):
    print("to stdout", flush=True)
    print("to stderr", file=sys.stderr)
    command, *rest = arguments
    if command == "look":
        found = {"torch": "torch" in sys.modules, "here": os.getcwd(), "word": os.environ.get("WORD"), "rest": rest,
                 "input": sys.stdin.read() if sys.stdin else "", "version": VERSION}
        Path("found.json").write_text(json.dumps(found))
    elif command == "sleep":
        Path("started").write_text(str(os.getpid()))
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            Path("stopped").touch()
            return 130
    elif command == "raise":
        raise ValueError("of the module")
    elif command == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return int(rest[0]) if rest else 0
"""

CLIENT = """
import sys
from pipeline import forkserver
path, *arguments = sys.argv[1:]
status = forkserver.run(path, "stage_of_tests", arguments)
sys.exit(99 if status is None else status)
"""


class Server:
    """A fork server whose forks find `stage_of_tests` in `folder`."""

    def __init__(self, folder: Path, **changes: str) -> None:
        self.folder, self.socket = folder, folder / "forks"
        self.write("1")
        preloaded = repr({"safetensors": ("torch",), **changes})
        code = f"from pathlib import Path; from pipeline import forkserver as f; f.PRELOADED = {preloaded}; "
        code += f"f.serve(Path({str(self.socket)!r}))"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(folder)},
            stderr=(folder / "log").open("wb"),
        )
        while not self.socket.exists():
            assert self.process.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)

    def write(self, version: str) -> None:
        (self.folder / "stage_of_tests.py").write_text(MODULE.replace("VERSION", version))

    def client(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(self.socket), *arguments],
            cwd=self.folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def asleep(self, client: subprocess.Popen[str]) -> psutil.Process:
        """The fork that runs the client's `sleep`."""
        started = self.folder / "started"
        while not started.exists() or not started.read_text():
            assert client.poll() is None
            time.sleep(0.02)
        return psutil.Process(int(started.read_text()))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.process.kill()
    server.process.wait()


def ended(process: psutil.Process) -> bool:
    deadline = time.monotonic() + 10
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_a_module_runs_with_the_callers_folder_environment_streams_and_status(server: Server) -> None:
    client = server.client("look", "7", WORD="grün")
    out, said = client.communicate(timeout=60)
    assert (out, said, client.returncode) == ("to stdout\n", "to stderr\n", 7)
    found = json.loads((server.folder / "found.json").read_text())
    assert found == {
        "torch": True, "here": str(server.folder), "word": "grün", "rest": ["7"], "input": "", "version": 1,
    }  # fmt: skip


def test_every_fork_reads_the_module_anew(server: Server) -> None:
    server.client("look").communicate(timeout=60)
    server.write("22")  # another size: Python's cache of compiled files goes by size and second
    server.client("look").communicate(timeout=60)
    assert json.loads((server.folder / "found.json").read_text())["version"] == 22


def test_ctrl_c_reaches_the_fork_which_ends_in_its_own_way(server: Server) -> None:
    client = server.client("sleep")
    fork = server.asleep(client)
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=60)
    assert client.returncode == 130
    assert (server.folder / "stopped").exists()
    assert ended(fork)


def test_a_fork_ends_with_the_process_that_asked_for_it(server: Server) -> None:
    client = server.client("sleep")
    fork = server.asleep(client)
    client.kill()
    client.communicate()
    assert ended(fork)
    assert not (server.folder / "stopped").exists()


def test_a_fork_outlives_the_server(server: Server) -> None:
    client = server.client("sleep")
    fork = server.asleep(client)
    assert psutil.Process(server.process.pid).children(recursive=True) == []
    server.process.kill()
    server.process.wait()
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=60)
    assert client.returncode == 130
    assert ended(fork)


def test_a_module_that_raises_says_so_on_the_callers_stderr(server: Server) -> None:
    client = server.client("raise")
    _, said = client.communicate(timeout=60)
    assert client.returncode == 1
    assert said.rstrip().endswith("ValueError: of the module")


def test_a_fork_that_is_killed_is_an_error(server: Server) -> None:
    client = server.client("die")
    _, said = client.communicate(timeout=60)
    assert client.returncode == 1
    assert "error: stage_of_tests die was killed" in said


def test_many_at_once_run_side_by_side(server: Server) -> None:
    clients = [server.client("look", str(status)) for status in range(6)]
    assert [client.wait(60) for client in clients] == list(range(6))
    for client in clients:
        client.communicate()


def test_without_a_server_nothing_is_run(tmp_path: Path) -> None:
    assert forkserver.run(str(tmp_path / "forks"), "stage_of_tests", ["look"]) is None


def test_after_a_library_was_replaced_the_fork_declines_and_nothing_is_run(tmp_path: Path) -> None:
    """As `pip install` does under a server that goes on."""
    info = tmp_path / "changing-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: changing\nVersion: 1\n")
    server = Server(tmp_path, changing=())  # type: ignore[arg-type]
    try:
        assert server.client("look").wait(60) == 0
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: changing\nVersion: 2\n")
        (tmp_path / "found.json").unlink()
        client = server.client("look")
        assert client.communicate(timeout=60) == ("", "")
        assert client.returncode == 99
        assert not (tmp_path / "found.json").exists()
    finally:
        server.process.kill()
        server.process.wait()
