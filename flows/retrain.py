"""The retraining of one prefix: snapshot → experiment → gate → register → report.

Prefect owns when this runs, what is retried and what a person watches; every step's work is in
`pipeline.retraining`. A task is retried only where repeating it is harmless: each is identified by content
(the snapshot by its hash, the rest by the run key), and only on faults that can pass by themselves.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from flows.tries import RETRIED as _RETRIED
from pipeline import retraining
from pipeline.errors import UnreachableError
from pipeline.outcome import Outcome, markdown
from pipeline.plan import Judged, Plan


@task(name="snapshot", **_RETRIED)
def snapshot(workspace: Path, prefix: str) -> Plan:
    """Version the data, verify the base, and say what this retraining is, or that it is known."""
    return retraining.plan(workspace, prefix, prefect_run=str(flow_run.id) if flow_run.id else None)


@task(name="experiment", **_RETRIED)
def experiment(plan: Plan) -> str:
    """Prepare, train and evaluate as one DVC experiment; the commit it gave."""
    return retraining.run_experiment(plan)


@task(name="gate", **_RETRIED)
def gate(plan: Plan, commit: str) -> Judged:
    """Fetch and verify what the experiment made, and judge it."""
    return retraining.judge(plan, commit)


@task(name="register", **_RETRIED)
def register(plan: Plan, judged: Judged) -> Outcome:
    """Register what passed; record what did not, with the reasons."""
    return retraining.register(plan, judged)


@task(name="report", **{**_RETRIED, "retries": 1, "retry_delay_seconds": [2]})
def report(outcome: Outcome) -> None:
    """What a person who watches Prefect sees."""
    create_markdown_artifact(
        key=f"retrain-{outcome.prefix}".replace("_", "-"),
        markdown=markdown(outcome),
        description=f"{outcome.prefix}: {outcome.outcome}",
    )


@flow(name="retrain", flow_run_name="retrain-{prefix}", persist_result=False, log_prints=False)
def retrain(workspace: str, prefix: str) -> dict[str, Any]:
    """Retrain `prefix` of the workspace at `workspace`.

    Returns:
        The fields of `pipeline.outcome.Outcome`; a plain dict, which Prefect can show.
    """
    logger = get_run_logger()
    plan = snapshot(Path(workspace), prefix)
    if plan.known is not None:
        logger.info("unchanged: run key %s is known", plan.run_key)
        outcome = retraining.earlier_outcome(plan)
    else:
        commit = experiment(plan)
        outcome = register(plan, gate(plan, commit))
    report(outcome)
    logger.info("%s: %s", prefix, outcome.outcome)
    return outcome.to_json()


def retrain_now(workspace: Path, prefix: str) -> Outcome:
    """Run the flow in this process, which must be in the workspace's environment (`pipeline.private_prefect`).

    Where the Prefect server goes away under way, the steps go on without it; only if the last of them was not reached
    is anything missing.

    Raises:
        UnreachableError: the Prefect server went away, and the retraining is not complete.
        PrefixlineError: whatever a step raised.
    """
    try:
        return Outcome(**retrain(workspace=str(workspace), prefix=prefix))
    except httpx.HTTPError as error:
        found = retraining.already_done(workspace, prefix)
        if found is not None and found.earlier is not None:
            print("the Prefect server went away; it does not show how this retraining ended", file=sys.stderr)  # noqa: T201
            return replace(found, outcome=found.earlier, earlier=None)
        raise UnreachableError(
            f"the Prefect server went away during the retraining ({error}); what was computed is kept: start it "
            "again with `prefixline up`, or do without, and run the same command"
        ) from error
