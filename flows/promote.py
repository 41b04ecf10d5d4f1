"""A promotion that waits for its approvals: check and ask → approval → move → report.

The request is in the ledger, not in Prefect. So a run that was killed anywhere is simply run again: it finds the request,
the approvals that came meanwhile, or that all is done, and nothing happens twice.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import httpx
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact

from flows.tries import RETRIED
from pipeline import workspace_promotion
from pipeline.errors import UnreachableError
from pipeline.ledger.rules import Ruled
from pipeline.promotion import Moved, Waiting
from pipeline.workspace_promotion import Promotion


@task(name="check and ask", **RETRIED)
def begin(wanted: Promotion) -> Moved | Waiting:
    """Check the version by the rules; move it, or ask for approvals."""
    return workspace_promotion.begin(wanted)


@task(name="approval", **RETRIED)
def approval(wanted: Promotion, waiting: Waiting, seconds: float) -> None:
    """Wait until enough approvers have agreed."""
    workspace_promotion.wait(wanted, waiting, seconds, _say)


@task(name="move", **RETRIED)
def carry_out(wanted: Promotion) -> Moved:
    """Append the promotion to the ledger, and put the aliases where it says."""
    return workspace_promotion.carry_out(wanted)


@task(name="report", **{**RETRIED, "retries": 1, "retry_delay_seconds": [2]})
def report(moved: Moved) -> None:
    """What a person who watches Prefect sees."""
    create_markdown_artifact(
        key=f"promote-{moved.event.prefix}".replace("_", "-"),
        markdown=workspace_promotion.markdown(moved),
        description=moved.event.sentence,
    )


@flow(
    name="promote",
    flow_run_name="promote-{prefix}-{version}-to-{stage}",
    persist_result=False,
    log_prints=False,
)
def promote(
    workspace: str,
    prefix: str,
    version: str,
    stage: Ruled,
    reason: str,
    wait_seconds: float,
    expect: str | None = None,
    key: str | None = None,
) -> dict[str, Any]:
    """Promote `version` of `prefix` to `stage`, with the arguments of `pipeline.workspace_promotion.Promotion`.

    Args:
        wait_seconds: for the approvals, from when this run begins to wait; then the request is given up.

    Returns:
        The event, as its JSON has it; a plain dict, which Prefect can show.
    """
    wanted = Promotion(
        Path(workspace),
        prefix,
        version,
        stage,
        reason,
        expect,
        None if key is None else Path(key),
    )
    moved = begin(wanted)
    if isinstance(moved, Waiting):
        approval(wanted, moved, wait_seconds)
        moved = carry_out(wanted)
    report(moved)
    get_run_logger().info("%s: %s", prefix, moved.event.sentence)
    event: dict[str, Any] = json.loads(moved.event.to_json())
    return event


def promote_now(wanted: Promotion, wait_seconds: float) -> Moved:
    """Run the flow in this process, which must be in the workspace's environment (`pipeline.private_prefect`).

    Raises:
        UnreachableError: the Prefect server went away; running it again goes on.
        PrefixlineError: whatever a step raised.
    """
    try:
        event = promote(
            workspace=str(wanted.workspace),
            prefix=wanted.name,
            version=wanted.version,
            stage=wanted.to,
            reason=wanted.reason,
            wait_seconds=wait_seconds,
            expect=wanted.expect,
            key=None if wanted.key is None else str(wanted.key),
        )
    except httpx.HTTPError as error:
        raise UnreachableError(
            f"the Prefect server went away during the promotion ({error}); a request that was made stays open: run the same "
            "command again"
        ) from error
    return workspace_promotion.moved(wanted, event)


def _say(line: str) -> None:
    get_run_logger().info(line)
    print(line, file=sys.stderr, flush=True)  # noqa: T201
