"""The servers of a workspace: real ones, on free loopback ports."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline import server_access, servers
from pipeline.errors import ServerError, WorkspaceError
from pipeline.server_state import ProcessId, ServerRecord, ServersRecord, read_state

UP = """
import sys
from pathlib import Path
from pipeline.errors import PrefixlineError
from pipeline.servers import up
try:
    up(Path(sys.argv[1]), mlflow_port=0, prefect_port=0, say=lambda line: print(line, flush=True))
except PrefixlineError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""

CONNECTIONS = """
import os, sys
def watch(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple):
        with open(os.environ["CONNECTIONS_LOG"], "a") as log:
            print(args[1][0], file=log)
    elif event == "socket.getaddrinfo":
        with open(os.environ["CONNECTIONS_LOG"], "a") as log:
            print(args[0], file=log)
sys.addaudithook(watch)
"""


def a_workspace(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text("prefixes: {}\n")
    return folder


def start_up(workspace: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", UP, str(workspace)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_up(process: subprocess.Popen[str]) -> list[str]:
    """The lines it printed until both servers answered."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip())
        if line.startswith("Both servers are up"):
            return lines
    pytest.fail(f"never up: {lines} {process.communicate()[1]}")


def client_of(uri: str) -> Any:
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return mlflow.MlflowClient()


def log_text(client: Any, name: str, root: str, folder: Path, text: str) -> str:
    """A run with one artifact, in a new experiment whose artifacts lie below `root`; returns the run id."""
    experiment = client.create_experiment(name, artifact_location=f"{root}/{name}")
    run = client.create_run(experiment)
    (folder / "note.txt").write_text(text)
    client.log_artifact(run.info.run_id, str(folder / "note.txt"))
    client.log_param(run.info.run_id, "text", text)
    return str(run.info.run_id)


def register_model(client: Any, experiment: str, folder: Path, text: str) -> str:
    """A logged model of one file, registered as `model`; returns the version."""
    from mlflow.entities import LoggedModelStatus

    (folder / "MLmodel").write_text(text)
    model = client.create_logged_model(client.get_experiment_by_name(experiment).experiment_id)
    client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    if not client.search_registered_models():
        client.create_registered_model("model")
    version = client.create_model_version("model", f"models:/{model.model_id}", model_id=model.model_id)
    return str(version.version)


def downloaded(uri: str, tracking_uri: str, folder: Path) -> str:
    import mlflow

    client_of(tracking_uri)
    path = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
    return path.read_text() if path.is_file() else (path / "MLmodel").read_text()


def alive_below(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as reply:
        return bytes(reply.read())


@dataclass
class Session:
    """What was seen in one life of the servers, between two stretches without them."""

    workspace: Path
    lines: list[str]
    during: server_access.Endpoints
    environment: dict[str, str]
    second_up: subprocess.CompletedProcess[str]
    started: list[psutil.Process]
    return_code: int
    seconds_to_end: float
    connections: set[str]
    read: dict[str, str]
    ui_read: bytes
    versions: list[str]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    tmp = tmp_path_factory.mktemp("servers")
    workspace = a_workspace(tmp / "my #1 work space")
    (tmp / "site").mkdir()
    (tmp / "site/sitecustomize.py").write_text(CONNECTIONS)
    log = tmp / "connections"

    before = server_access.endpoints(workspace)
    (workspace / ".prefixline").mkdir()
    direct = client_of(before.mlflow_uri)
    direct_run = log_text(direct, "direct", before.artifact_root, tmp, "written directly")
    (tmp / "model").mkdir()
    versions = [register_model(direct, "direct", tmp / "model", "model written directly")]

    process = start_up(workspace, PYTHONPATH=str(tmp / "site"), CONNECTIONS_LOG=str(log))
    lines = wait_until_up(process)
    during = server_access.endpoints(workspace)
    environment = server_access.environment(workspace)
    second_up = subprocess.run(
        [sys.executable, "-c", UP, str(workspace)], capture_output=True, text=True, timeout=60
    )
    through = client_of(during.mlflow_uri)
    read = {
        "direct run, server": downloaded(f"runs:/{direct_run}/note.txt", during.mlflow_uri, tmp / "a"),
        "direct model, server": downloaded("models:/model/1", during.mlflow_uri, tmp / "b"),
    }
    ui_read = get(f"{during.mlflow_uri}/get-artifact?run_uuid={direct_run}&path=note.txt")
    server_run = log_text(through, "through", during.artifact_root, tmp, "written through the server")
    versions.append(register_model(through, "through", tmp / "model", "model written through"))
    in_old = register_model(through, "direct", tmp / "model", "written through, into the direct experiment")
    versions.append(in_old)
    started = alive_below(process)

    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    return_code = process.wait(60)
    seconds_to_end = time.monotonic() - asked
    after = server_access.endpoints(workspace)
    assert after == before
    read["server run, direct"] = downloaded(f"runs:/{server_run}/note.txt", after.mlflow_uri, tmp / "c")
    read["server model, direct"] = downloaded("models:/model/2", after.mlflow_uri, tmp / "d")
    read["mixed model, direct"] = downloaded("models:/model/3", after.mlflow_uri, tmp / "e")
    return Session(
        workspace,
        lines,
        during,
        environment,
        second_up,
        started,
        return_code,
        seconds_to_end,
        set(log.read_text().split()),
        read,
        ui_read,
        versions,
    )


def test_artifacts_written_with_or_without_the_servers_are_read_without_or_with_them(
    session: Session,
) -> None:
    assert session.read == {
        "direct run, server": "written directly",
        "direct model, server": "model written directly",
        "server run, direct": "written through the server",
        "server model, direct": "model written through",
        "mixed model, direct": "written through, into the direct experiment",
    }
    assert session.versions == ["1", "2", "3"]


def test_the_servers_own_pages_can_read_artifacts_written_directly(session: Session) -> None:
    assert session.ui_read == b"written directly"


def test_up_says_where_the_servers_are_and_endpoints_agree(session: Session) -> None:
    said = re.findall(r"(\w+) answers at (http://127\.0\.0\.1:\d+)", "\n".join(session.lines))
    assert said == [
        ("MLflow", session.during.mlflow_uri),
        ("Prefect", (session.during.prefect_api_url or "").removesuffix("/api")),
    ]


def test_all_data_stays_in_the_workspace(session: Session) -> None:
    names = {path.name for path in (session.workspace / ".prefixline").iterdir()}
    assert names == {"logs", "mlartifacts", "mlflow.db", "prefect", "up.lock"}
    assert (session.workspace / ".prefixline/prefect/prefect.db").is_file()
    assert {path.name for path in session.workspace.iterdir()} == {".prefixline", "params.yaml"}


def test_the_servers_connect_to_nothing_but_loopback(session: Session) -> None:
    assert session.connections <= {"127.0.0.1", "localhost", "::1", "None"}
    assert session.connections, "the watch on connections saw not even the health checks: it does not work"


def test_a_second_up_says_it_is_already_up_and_changes_nothing(session: Session) -> None:
    assert session.second_up.returncode == 1
    assert re.search(
        r"WorkspaceError: the servers of .* are already up \(process \d+\)", session.second_up.stderr
    )
    assert session.during.mlflow_uri in session.second_up.stderr


def test_ending_up_ends_every_process_it_started_and_removes_servers_json(session: Session) -> None:
    assert session.return_code == 0
    assert len(session.started) >= 3  # mlflow, its uvicorn, prefect
    assert not [p for p in session.started if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not (session.workspace / ".prefixline/servers.json").exists()
    assert session.seconds_to_end < 30


def test_the_environment_points_prefect_at_the_running_server_without_telemetry(session: Session) -> None:
    environment = session.environment
    assert environment["PREFECT_API_URL"] == session.during.prefect_api_url
    assert environment["PREFECT_HOME"] == str(session.workspace / ".prefixline/prefect")
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert environment["DO_NOT_TRACK"] == "1"
    assert {"127.0.0.1", "localhost"} <= set(environment["NO_PROXY"].split(","))


def test_servers_left_by_a_killed_up_are_found_ended_and_replaced_and_a_dying_server_ends_the_other(
    session: Session,
) -> None:
    workspace = session.workspace
    first = start_up(workspace)
    wait_until_up(first)
    left_behind = alive_below(first)
    first.kill()
    first.communicate(timeout=10)
    assert server_access.running(workspace) is not None  # they still answer, so they are still used

    second = start_up(workspace)
    lines = wait_until_up(second)
    assert [line for line in lines if "an earlier `up` left behind" in line]
    assert not [p for p in left_behind if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    state = read_state(workspace / ".prefixline")
    assert state is not None
    of_second = alive_below(second)
    os.kill(state.prefect.process.pid, signal.SIGKILL)
    _, error = second.communicate(timeout=60)
    assert second.returncode == 1
    assert f"ServerError: Prefect ended by itself, by signal 9. The end of {workspace}" in error
    assert "Check out the dashboard" in error  # the last lines of its log
    assert not [p for p in of_second if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert server_access.endpoints(workspace).prefect_api_url is None
    assert not (workspace / ".prefixline/servers.json").exists()


def test_a_server_that_cannot_start_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    workspace = a_workspace(tmp_path)
    (workspace / ".prefixline").mkdir()
    (workspace / ".prefixline/mlflow.db").write_bytes(b"this is no database\n" * 100)
    with pytest.raises(ServerError, match=r"MLflow ended by itself, with exit status 1(?s:.*)not a database"):
        servers.up(workspace, mlflow_port=0, prefect_port=0, say=lambda _: None)
    assert not (workspace / ".prefixline/servers.json").exists()


def test_without_the_fork_server_all_goes_on_and_a_long_tmpdir_is_no_hindrance(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    process = start_up(a_workspace(tmp_path), TMPDIR=str(long))
    try:
        wait_until_up(process)
        state = read_state(tmp_path / ".prefixline")
        assert state is not None
        while not Path(state.forks.url).exists():
            assert state.forks.process.alive()
            time.sleep(0.1)
        assert Path(state.forks.url).parent.stat().st_mode & 0o777 == 0o700
        assert server_access.endpoints(tmp_path).forkserver == state.forks.url
        os.kill(state.forks.process.pid, signal.SIGKILL)
        assert process.stdout is not None
        assert "is gone; stages import them by themselves" in process.stdout.readline()
        where = server_access.endpoints(tmp_path)
        assert where.forkserver is None
        assert server_access.answers(f"{where.mlflow_uri}/health")
        assert server_access.answers(f"{where.prefect_api_url}/ready")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert not Path(state.forks.url).parent.exists()


def test_a_server_that_does_not_answer_in_time_is_ended(tmp_path: Path) -> None:
    workspace = a_workspace(tmp_path)
    before = psutil.Process().children(recursive=True)
    with pytest.raises(ServerError, match=r"MLflow did not answer at http://127.0.0.1:\d+/health within 1 s"):
        servers.up(workspace, mlflow_port=0, prefect_port=0, timeout=1, say=lambda _: None)
    assert psutil.Process().children(recursive=True) == before


def test_ctrl_c_while_the_servers_start_ends_them(tmp_path: Path) -> None:
    process = start_up(a_workspace(tmp_path))
    while read_state(tmp_path / ".prefixline") is None:
        assert process.poll() is None
        time.sleep(0.05)
    assert server_access.running(tmp_path) is None  # not ready is not running
    started = alive_below(process)
    assert started
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert not [p for p in started if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not (tmp_path / ".prefixline/servers.json").exists()


@pytest.mark.parametrize("address", ["127.0.0.1", ""])
@pytest.mark.parametrize("name", ["mlflow", "prefect"])
def test_a_taken_port_names_the_process_and_the_option(tmp_path: Path, address: str, name: str) -> None:
    with socket.socket() as listener:
        listener.bind((address, 0))
        listener.listen()
        port = listener.getsockname()[1]
        ports = {"mlflow_port": 0, "prefect_port": 0, f"{name}_port": port}
        with pytest.raises(ServerError) as caught:
            servers.up(a_workspace(tmp_path), say=lambda _: None, **ports)
    assert f"port {port} on 127.0.0.1 is taken by process {os.getpid()} (" in str(caught.value)
    assert f"--{name}-port" in str(caught.value)


def test_a_folder_without_params_is_no_workspace(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"has no params\.yaml"):
        servers.up(tmp_path, say=lambda _: None)
    assert list(tmp_path.iterdir()) == []


def a_record(process: ProcessId) -> ServersRecord:
    mlflow, prefect, forks = (ServerRecord(url, process) for url in ("http://m", "http://p", "/tmp/forks"))
    return ServersRecord(process, mlflow, prefect, forks, ready=True)


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    record = a_record(ProcessId.of(os.getpid()))
    record.write(tmp_path)
    assert read_state(tmp_path) == record


def test_a_record_of_living_processes_counts(tmp_path: Path) -> None:
    a_record(ProcessId.of(os.getpid())).write(tmp_path / ".prefixline")
    assert server_access.endpoints(tmp_path).mlflow_uri == "http://m"
    assert server_access.endpoints(tmp_path).prefect_api_url == "http://p/api"
    assert server_access.endpoints(tmp_path).forkserver == "/tmp/forks"


def test_a_record_of_dead_or_other_processes_is_stale(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    living = ProcessId.of(child.pid)
    assert living.alive()
    child.kill()
    time.sleep(0.2)
    assert not living.alive()  # a zombie
    child.wait()
    reused = ProcessId(os.getpid(), ProcessId.of(os.getpid()).started - 1000)
    for process in (living, reused, ProcessId.of(child.pid)):
        a_record(process).write(tmp_path / ".prefixline")
        assert server_access.endpoints(tmp_path) == server_access.Endpoints(
            f"sqlite:///{tmp_path}/.prefixline/mlflow.db",
            None,
            None,
            f"file://{tmp_path}/.prefixline/mlartifacts",
        )


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"up": 1}', '{"up": {"pid": 1}}', "null"])
def test_a_servers_json_that_cannot_be_read_counts_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / ".prefixline").mkdir()
    (tmp_path / ".prefixline/servers.json").write_text(content)
    assert server_access.endpoints(tmp_path).prefect_api_url is None
