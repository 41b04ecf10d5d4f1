"""The fork server: a module runs in a fork of a process that has the libraries, as it would in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
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
    if command == "handle":
        signal.signal(signal.SIGTERM, lambda *_: (Path("stopped").touch(), sys.exit(0)))
        command = "sleep"
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
forkserver.PRELOADED = {}
forkserver._PATIENCE_SECONDS = 2
status = forkserver.run(path, "stage_of_tests", arguments)
sys.exit(99 if status is None else status)
"""


def paths(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}


class Server:
    """A fork server whose forks find `stage_of_tests` in `folder`."""

    def __init__(self, folder: Path, **more: tuple[str, ...]) -> None:
        self.folder, self.socket = folder, folder / "forks"
        self.preloaded = {"safetensors": ("torch",), **more}
        self.write("1")
        self.log = folder / "log"
        code = "from pathlib import Path; from pipeline import forkserver as f; "
        code += f"f.PRELOADED = {self.preloaded!r}; "
        code += f"f.serve(Path({str(self.socket)!r}))"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, **paths(folder)},
            stderr=self.log.open("wb"),
        )
        while not self.socket.exists():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)

    def write(self, version: str) -> None:
        (self.folder / "stage_of_tests.py").write_text(MODULE.replace("VERSION", version))

    def client(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", CLIENT.format(self.preloaded), str(self.socket), *arguments],
            cwd=self.folder,
            env={**os.environ, **paths(self.folder), **environment},
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
    # Once the process between the two has ended, which may be a moment later.
    assert all(ended(child) for child in psutil.Process(server.process.pid).children())
    assert fork not in psutil.Process(server.process.pid).children(recursive=True)
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


def test_sigterm_reaches_the_fork_which_can_handle_it(server: Server) -> None:
    client = server.client("handle")
    fork = server.asleep(client)
    client.terminate()
    client.communicate(timeout=60)
    assert ended(fork)
    assert (server.folder / "stopped").exists()


EARLY = """
import os, signal, time
from pathlib import Path
from pipeline import forkserver
start = forkserver._start
def signalled(*arguments):
    begun = start(*arguments)
    while not Path("started").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.NUMBER)
    return begun
forkserver._start = signalled
"""


@pytest.mark.parametrize(("command", "number"), [("handle", "SIGTERM"), ("sleep", "SIGINT")])
def test_a_signal_that_comes_just_as_the_fork_begins_is_passed_on_too(
    server: Server, command: str, number: str
) -> None:
    code = EARLY.replace("NUMBER", number) + CLIENT.format(server.preloaded)
    done = subprocess.run(
        [sys.executable, "-c", code, str(server.socket), command],
        cwd=server.folder,
        env={**os.environ, **paths(server.folder)},
        check=False,
        timeout=60,
    )
    assert done.returncode >= 0  # not ended by the signal itself
    assert (server.folder / "stopped").exists()


def test_without_a_server_nothing_is_run(tmp_path: Path) -> None:
    assert forkserver.run(str(tmp_path / "forks"), "stage_of_tests", ["look"]) is None


def declined(server: Server, **environment: str) -> bool:
    """Whether a fork declined, and nothing was run."""
    (server.folder / "found.json").unlink(missing_ok=True)
    client = server.client("look", **environment)
    assert client.communicate(timeout=60)[0] in ("", "to stdout\n")
    assert (client.returncode == 99) is not (server.folder / "found.json").exists()
    return client.returncode == 99


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("HF_HUB_OFFLINE", "0", True),
        ("OMP_NUM_THREADS", "1", True),
        ("PYTHONPATH", "/elsewhere", True),
        ("PREFIXLINE_WORKSPACE", "/w", False),
        ("COLUMNS", "77", False),
    ],
)
def test_a_fork_declines_where_what_was_read_at_import_would_be_another(
    server: Server, variable: str, value: str, expected: bool
) -> None:
    assert declined(server, **{variable: value}) is expected
    assert ("declined: environment" in server.log.read_text()) is expected


def test_a_fork_declines_another_priority(server: Server) -> None:
    command = [
        "nice",
        "-n",
        "3",
        sys.executable,
        "-c",
        CLIENT.format(server.preloaded),
        str(server.socket),
        "look",
    ]
    done = subprocess.run(command, cwd=server.folder, env={**os.environ, **paths(server.folder)}, check=False)
    assert done.returncode == 99
    assert "declined: priority is 3 there" in server.log.read_text()


def test_a_server_that_takes_too_long_or_ends_before_the_fork_began_is_done_without(server: Server) -> None:
    server.process.send_signal(signal.SIGSTOP)
    waiting = server.client("look")
    assert waiting.wait(60) == 99
    cut_off = server.client("look")
    time.sleep(1)
    server.process.kill()
    assert cut_off.wait(60) == 99
    assert [client.communicate() for client in (waiting, cut_off)] == [("", "")] * 2


def test_after_a_library_was_replaced_or_removed_the_fork_declines(tmp_path: Path) -> None:
    """As `pip install` does under a server that goes on."""
    info = tmp_path / "changing-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: changing\nVersion: 1\n")
    server = Server(tmp_path, changing=())
    try:
        assert not declined(server)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: changing\nVersion: 2\n")
        assert declined(server)
        shutil.rmtree(info)
        assert declined(server)
    finally:
        server.process.kill()
        server.process.wait()
