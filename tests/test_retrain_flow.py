"""What the retraining's flow tries again, by a real Prefect server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from pipeline.environment import quiet_environment

TRIES = """
import json, sys
from pathlib import Path
from pipeline import private_prefect
wait = private_prefect.enter(Path(sys.argv[1]))
from prefect import flow, task
from flows import retrain, tries as tried
from pipeline import errors

tries = {}

def failing(error):
    def body():
        tries[type(error).__name__] = tries.get(type(error).__name__, 0) + 1
        raise error
    # With the options of every step of the retraining, but without its waits.
    return task(**{**tried.RETRIED, "retry_delay_seconds": [0, 0, 0]})(body)

@flow
def all_of_them():
    for error in (errors.UnreachableError("no answer"), ConnectionError("reset"), TimeoutError("late"),
                  errors.DataError(["row 3"]), errors.IntegrityError(["other bytes"]), ValueError("ours")):
        try:
            failing(error)()
        except type(error):
            pass

wait()
all_of_them()
steps = {name: getattr(retrain, name) for name in ("snapshot", "experiment", "gate", "register", "report")}
print(json.dumps([tries, {name: [step.retries, step.retry_condition_fn is tried.may_pass] for name, step in steps.items()}]))
"""


def test_only_a_server_that_did_not_answer_is_tried_again(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRIES, str(tmp_path)],
        env={**os.environ, **quiet_environment(), "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    tries, steps = json.loads(done.stdout.splitlines()[-1])
    again = {"UnreachableError", "ConnectionError", "TimeoutError"}
    assert tries == {
        name: 4 if name in again else 1 for name in (*again, "DataError", "IntegrityError", "ValueError")
    }
    # The report is a courtesy to who watches Prefect; nobody waits long for it.
    assert steps == {
        **{name: [3, True] for name in ("snapshot", "experiment", "gate", "register")},
        "report": [1, True],
    }
