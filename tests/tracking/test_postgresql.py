"""MLflow's tables in PostgreSQL: made once, by whoever comes first; and an address whose password nobody is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import sqlalchemy

from pipeline import server_access
from pipeline.errors import RegistryError, UnreachableError
from pipeline.tracking.connection import MLFLOW_URI, connect, without_password
from tests import mlflow_world, postgres
from tests.test_servers import a_workspace, alive_below, start_up, wait_until_up

SECRETS = (postgres.PASSWORD, postgres.QUOTED)
FILES = "file:///nowhere"


def making(uri: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.tracking", FILES], env={**os.environ, MLFLOW_URI: uri}
    )


@pytest.mark.postgres
def test_a_process_killed_while_it_makes_the_tables_leaves_nothing_that_the_next_one_stumbles_over():
    uri = postgres.cluster().empty()
    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    process = making(uri)
    deadline = time.monotonic() + 120
    while not sqlalchemy.inspect(engine).has_table("experiments"):
        assert process.poll() is None
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not sqlalchemy.inspect(engine).has_table("alembic_version")
    (default,) = connect(uri, artifact_root=FILES).client.search_experiments()
    assert default.artifact_location == f"{FILES}/0"


@pytest.mark.postgres
def test_processes_that_want_the_tables_at_once_all_get_them():
    uri = postgres.cluster().empty()
    processes = [making(uri) for _ in range(3)]
    assert [process.wait(timeout=240) for process in processes] == [0, 0, 0]
    client = connect(uri, artifact_root=FILES).client
    assert client.get_run(client.create_run("0").info.run_id).info.status == "RUNNING"


@pytest.mark.postgres
def test_an_error_of_postgresql_says_where_and_never_the_password():
    cluster = postgres.cluster()
    wrong = cluster.uri("mlflow").replace("tester:", "nobody:")
    for uri in (wrong, cluster.uri("no_such_database")):
        with pytest.raises(
            UnreachableError, match=r"postgresql://\w+:\*\*\*@127.0.0.1:\d+/\w+ does not answer"
        ) as caught:
            connect(uri, artifact_root=FILES)
        chain: BaseException | None = caught.value
        while chain is not None:
            assert not [secret for secret in SECRETS if secret in f"{chain} {chain!r}"]
            chain = chain.__cause__


@pytest.mark.postgres
def test_a_workspace_on_postgresql_is_the_same_with_its_servers_and_without_and_keeps_the_password_to_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    workspace, uri = a_workspace(tmp_path), postgres.cluster().empty()
    monkeypatch.setenv(MLFLOW_URI, uri)
    where = server_access.endpoints(workspace)
    direct = connect(where.mlflow_uri, artifact_root=where.artifact_root)
    direct.client.create_experiment("before")
    process = start_up(workspace)
    try:
        lines = wait_until_up(process)
        where = server_access.endpoints(workspace)
        assert where.mlflow_uri.startswith("http://127.0.0.1:")
        served = connect(where.mlflow_uri, artifact_root=where.artifact_root)
        assert served.client.get_experiment_by_name("before") is not None
        served.client.create_experiment("during")
        commands = [" ".join(each.cmdline()) for each in [psutil.Process(process.pid), *alive_below(process)]]
    finally:
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)
    assert direct.client.get_experiment_by_name("during") is not None
    assert not (workspace / ".prefixline/mlflow.db").exists()
    written = [path.read_text(errors="replace") for path in workspace.rglob("*") if path.is_file()]
    told = "\n".join([*lines, *said, *commands, *written, repr(direct), repr(where)])
    assert "mlflow server" in told
    assert not [secret for secret in SECRETS if secret in told]


def test_without_the_driver_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(
        RegistryError, match=r"needs the driver psycopg2.*pip install 'prefixline\[postgres\]'"
    ):
        connect("postgresql://tester:x@127.0.0.1/mlflow", artifact_root=FILES)


def test_a_server_that_is_not_there_is_told_within_seconds_and_without_its_password():
    port = mlflow_world.free_port()
    with pytest.raises(
        UnreachableError, match=r"database postgresql://a:\*\*\*@127.0.0.1:\d+/b does not answer"
    ):
        connect(f"postgresql://a:secret@127.0.0.1:{port}/b", artifact_root=FILES)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://a:secret@h/b", "postgresql://a:***@h/b"),
        ("postgresql://a:sec:r@et@h/b", "postgresql://a:***@h/b"),
        ("postgresql://:secret@h/b", "postgresql://:***@h/b"),
        ("https://token@h/b", "https://***@h/b"),
        ("https://a:secret@h/b", "https://a:***@h/b"),
        ("https://h/b@c", "https://h/b@c"),
        ("postgresql://h/b?password=secret&user=a", "postgresql://h/b?password=***&user=a"),
        ("postgresql://h/b?user=a&sslpassword=secret", "postgresql://h/b?user=a&sslpassword=***"),
        ("postgresql://a@h/b", "postgresql://a@h/b"),
        ("sqlite:////x/a:b.db", "sqlite:////x/a:b.db"),
        ("http://h:5000", "http://h:5000"),
    ],
)
def test_an_address_is_shown_without_its_password(uri: str, shown: str):
    assert without_password(uri) == shown


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (
            "http://a:secret@127.0.0.1:5000",
            "http://a:\\*\\*\\*@.*MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        ),
        ("mysql://a:secret@h/b", "mysql://a:\\*\\*\\*@h/b.*expected http://, https://, postgresql://"),
        ("postgresql://a:b@secret:x/b", "this PostgreSQL address of MLflow cannot be read"),
        ("postgresql://a:x@secret@h/b", "cannot be read; .*%40"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_without_its_password(uri: str, message: str):
    with pytest.raises(RegistryError, match=message) as caught:
        connect(uri, artifact_root=FILES)
    assert "secret" not in str(caught.value)


def test_a_workspace_may_use_a_server_of_the_teams_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(MLFLOW_URI, "https://mlflow.example")
    where = server_access.endpoints(tmp_path)
    assert (where.mlflow_uri, where.artifact_root) == ("https://mlflow.example", None)
