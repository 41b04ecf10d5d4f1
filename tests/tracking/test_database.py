"""MLflow's database is made whole or not at all, however many processes want it and whatever ends them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pipeline.tracking.connection import MLFLOW_URI, connect


def making(path: Path) -> subprocess.Popen[bytes]:
    root = (path.parent / "files").as_uri()
    environment = {**os.environ, MLFLOW_URI: f"sqlite:///{path}"}
    return subprocess.Popen([sys.executable, "-m", "pipeline.tracking", root], env=environment)


def test_a_process_killed_while_making_it_leaves_nothing_that_the_next_one_stumbles_over(
    tmp_path: Path,
) -> None:
    path = tmp_path / "mlflow.db"
    process = making(path)
    deadline = time.monotonic() + 60
    while not any(part.stat().st_size for part in tmp_path.glob(".mlflow.db.*/mlflow.db")):
        assert process.poll() is None
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not path.exists()
    registry = connect(f"sqlite:///{path}", artifact_root=(tmp_path / "files").as_uri())
    (default,) = registry.client.search_experiments()
    assert not list(tmp_path.glob(".mlflow.db.*"))
    assert default.artifact_location == f"{(tmp_path / 'files').as_uri()}/0"


def test_processes_that_want_it_at_once_all_get_the_same_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    processes = [making(path) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert {entry.name for entry in tmp_path.iterdir()} == {"mlflow.db", "mlflow.db.lock"}
    registry = connect(f"sqlite:///{path}", artifact_root=(tmp_path / "files").as_uri())
    assert registry.client.get_run(registry.client.create_run("0").info.run_id).info.status == "RUNNING"
