"""The promotion's flow through the real command: killed while it waits, run again, and nothing happens twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline import workspace_promotion
from pipeline.cli import main
from pipeline.environment import quiet_environment
from pipeline.keys import make_key
from pipeline.ledger import log
from pipeline.promotion import Moved
from pipeline.versioning.workspace import init_workspace
from pipeline.workspace_promotion import Promotion
from tests import mlflow_world
from tests.ledger import world
from tests.line import PREFIXLINE

PARAMS = """\
base_models: {{tiny: {{source: {{path: base}}, digest: {digest}}}}}
keys: {{requester: {requester}, approver: {approver}}}
defaults:
  promotion:
    staging: {{signed_by: [requester], approvals: 1, approvers: [approver]}}
prefixes:
  reviews: {{base_model: tiny, task: classification, data: {{path: data/reviews.jsonl}}}}
"""


def test_a_flow_that_was_killed_while_it_waits_goes_on_when_it_is_run_again(tmp_path: Path):
    root = init_workspace(tmp_path / "w").root
    requester, approver = (make_key(tmp_path / f"{name}.pem") for name in ("requester", "approver"))
    (root / "params.yaml").write_text(
        PARAMS.format(digest="a" * 64, requester=requester.public, approver=approver.public)
    )
    registry = mlflow_world.database(root)
    world.register(registry, tmp_path)
    command = [str(PREFIXLINE), "promote", "reviews", "1", "--to", "staging", "--reason", "better"]
    environment = {
        **os.environ,
        **quiet_environment(),
        "PREFIXLINE_KEY": str(tmp_path / "requester.pem"),
        "PREFIXLINE_ACTOR": "requester",
    }
    waiting = subprocess.Popen(
        [*command, "--wait", "500"], cwd=root, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert waiting.stderr is not None
    for line in waiting.stderr:
        if "0 of 1 approvals" in line:
            break
    else:
        pytest.fail(f"it ended with exit code {waiting.wait()} instead of waiting")
    waiting.send_signal(signal.SIGKILL)
    waiting.communicate(timeout=60)
    approved = CliRunner().invoke(
        main,
        ["-w", str(root), "approve", "reviews", "--reason", "looked at it"],
        env={"PREFIXLINE_KEY": str(tmp_path / "approver.pem"), "PREFIXLINE_ACTOR": "approver"},
    )
    assert approved.exit_code == 0, approved.output
    done = subprocess.run(
        [*command, "--wait", "500", "--json"], cwd=root, env=environment, capture_output=True, text=True,
        check=False, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # And once more when all is done, as a flow that was killed at its very end: its first step.
    wanted = Promotion(root, "reviews", "1", "staging", "better", key=tmp_path / "requester.pem")
    found = workspace_promotion.begin(wanted)
    assert isinstance(found, Moved)
    answer = json.loads(done.stdout)
    events = log.read(registry, "reviews").events
    assert [event.kind for event in events] == ["registered", "requested", "approved", "promoted"]
    assert (answer["id"], found.event) == (events[3].id, events[3])
    assert answer["stages"] == {"staging": "1"}
    assert events[3].request == events[1].id
    assert world.aliases(registry) == {"staging": "1"}
