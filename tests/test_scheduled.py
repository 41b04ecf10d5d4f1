"""A schedule in params.yaml retrains for real: both servers, the served deployment, the whole line."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from pathlib import Path
from subprocess import Popen

import pytest

from pipeline import server_access
from pipeline.register import registry
from tests.line import Line, make_line


def end(process: Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=90)


def wait_for(process: Popen[str], words: str) -> None:
    assert process.stderr is not None
    assert any(words in line for line in process.stderr), f"ended without saying {words!r}"


@pytest.mark.timeout(700)
def test_a_scheduled_run_registers_a_version_that_names_its_flow_run(tmp_path: Path) -> None:
    line: Line = make_line(tmp_path)
    line.change_params(
        "    task: classification\n", '    task: classification\n    schedule: {cron: "* * * * *"}\n'
    )
    with ExitStack() as cleanup:
        up = line.start("up", "--mlflow-port", "0", "--prefect-port", "0")
        cleanup.callback(end, up)
        wait_for(up, "Both servers are up")
        deploy = line.start("deploy")
        cleanup.callback(end, deploy)
        wait_for(deploy, "until Ctrl-C")
        where = server_access.endpoints(line.root)
        connection = registry.connect(where.mlflow_uri, artifact_root=where.artifact_root)
        deadline = time.monotonic() + 240
        while (last := registry.last_outcome(connection, "words")) is None:
            assert deploy.poll() is None
            assert time.monotonic() < deadline
            time.sleep(1)
    assert last["outcome"] == "registered"
    assert where.mlflow_uri.startswith("http://")
    record = line.json("lineage", "words@candidate")
    assert record["version"] == "1"
    assert len(record["runs"]["prefect"]) == 36
