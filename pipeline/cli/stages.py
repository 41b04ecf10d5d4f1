"""Commands that move versions from stage to stage, and the history of it."""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.common import EXIT_WAITING, as_json, enter_prefect, print_json, without_collector
from pipeline.cli.keys import with_key

if TYPE_CHECKING:
    from pipeline.promotion import Moved, Waiting
    from pipeline.workspace_promotion import Promotion

EVENTS_SHOWN = 200
"""By `history`, where not all are asked for."""

with_reason = click.option("--reason", required=True, metavar="TEXT", help="Why; kept in the ledger.")


def _expectation(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """A version's number, or `none`."""
    if value is not None and value != "none" and not re.fullmatch("[1-9][0-9]*", value):
        raise click.BadParameter(f"got {value!r}; expected a version's number, as 3, or none", ctx, option)
    return value


with_expectation = click.option(
    "--expect",
    callback=_expectation,
    metavar="VERSION|none",
    help="The version that must stand there now, `none` for none; exit code 4 if it is another.",
)


def _print_moved(moved: Moved, json_output: bool) -> None:
    for each in moved.repaired:
        click.echo(f"put right first: {each}", err=True)
    if json_output:
        event, stages, repaired = (
            moved.event,
            dict(moved.state.stages),
            [str(each) for each in moved.repaired],
        )
        told = {**json.loads(event.to_json()), "sha256": event.digest, "stages": stages, "repaired": repaired}
        print_json(told)
    else:
        from pipeline.show.terminal import show_moved

        show_moved(moved.event, moved.state)


def _print_waiting(waiting: Waiting, json_output: bool) -> None:
    for each in waiting.repaired:
        click.echo(f"put right first: {each}", err=True)
    if json_output:
        print_json(
            {
                **json.loads(waiting.request.asked.to_json()),
                "approvals": [json.loads(approval.to_json()) for approval in waiting.approvals],
                "missing": waiting.missing,
                "approvers": sorted(waiting.rules.approvers.values()),
            }
        )
    else:
        from pipeline.show.terminal import show_waiting

        show_waiting(waiting)


@click.command()
@click.argument("name")
@click.argument("version")
@click.option(
    "--to", required=True, type=click.Choice(["staging", "production"]),
    help="The stage: staging first, then production.",
)  # fmt: skip
@with_reason
@with_expectation
@with_key
@click.option(
    "--wait", type=click.FloatRange(min=0), metavar="SECONDS",
    help="Run as a Prefect flow that waits this long for the approvals, and gives the request up then.",
)  # fmt: skip
@as_json
@click.pass_obj
def promote(
    workspace: Path,
    name: str,
    version: str,
    to: Any,
    reason: str,
    expect: str | None,
    key: Path | None,
    wait: float | None,
    json_output: bool,
) -> None:
    """Move VERSION of the prefix NAME up a stage. What production held goes to archived.

    Its verdict must have passed, its lineage record must verify, and what params.yaml asks for under `promotion` must be
    met. Where that is approvals, they are asked for, and the same command moves the version once they are there. Exit
    code 3: a rule or an approver said no; 4: somebody else moved a stage first, nothing was changed, and the message says
    what stands now; 6: it waits for approval, and what is missing is said.
    """
    from pipeline import workspace_promotion
    from pipeline.promotion import Waiting

    wanted = workspace_promotion.Promotion(workspace, name, version, to, reason, expect, key)
    done = workspace_promotion.promote(wanted) if wait is None else _run_flow(wanted, wait)
    if isinstance(done, Waiting):
        _print_waiting(done, json_output)
        sys.exit(EXIT_WAITING)
    _print_moved(done, json_output)


def _run_flow(wanted: Promotion, seconds: float) -> Moved:
    from pipeline.versioning.workspace import find_workspace

    wait_for_prefect = enter_prefect(find_workspace(wanted.workspace).root)
    with without_collector():
        from flows.promote import promote_now
    if wait_for_prefect is not None:
        wait_for_prefect()
    return promote_now(wanted, seconds)


@click.command()
@click.argument("name")
@click.option("--request", metavar="ID", help="Which; not needed where only one is open.")
@with_reason
@click.option("--refuse", is_flag=True, help="Say no; whoever asked may do so too, and take it back.")
@with_key
@as_json
@click.pass_obj
def approve(
    workspace: Path,
    name: str,
    request: str | None,
    reason: str,
    refuse: bool,
    key: Path | None,
    json_output: bool,
) -> None:
    """Agree to an open request to promote a version of the prefix NAME, by your signature. It moves nothing yet.

    `prefixline history NAME` lists the open requests. Exit code 3: you are no approver, or it is your own request.
    """
    from pipeline import workspace_promotion

    event = workspace_promotion.approve(
        workspace, name, request=request, reason=reason, key=key, refuse=refuse
    )
    if json_output:
        print_json({**json.loads(event.to_json()), "sha256": event.digest})
    else:
        from pipeline.show.terminal import show_answer

        show_answer(event)


@click.command()
@click.argument("name")
@with_reason
@with_expectation
@with_key
@as_json
@click.pass_obj
def rollback(
    workspace: Path, name: str, reason: str, expect: str | None, key: Path | None, json_output: bool
) -> None:
    """Bring back to production what it held before, by the ledger. What it holds goes to archived.

    A version put away by `archive` is passed over. It takes a signature where a promotion to production does, and never
    approvals. Exit code 3: it lacks that signature; 4: somebody else moved a stage first.
    """
    from pipeline import promotion
    from pipeline.workspace_promotion import acting

    by = acting(workspace, name, key)
    moved = promotion.rollback(
        by.registry, name, reason=reason, actor=by.actor, key=by.key, expect=expect, rules=by.rules
    )
    _print_moved(moved, json_output)


@click.command()
@click.argument("name")
@click.argument("version")
@with_reason
@with_key
@as_json
@click.pass_obj
def archive(
    workspace: Path, name: str, version: str, reason: str, key: Path | None, json_output: bool
) -> None:
    """Put VERSION of the prefix NAME away, from whichever stage it stands in, also where params.yaml has no such prefix any more.

    Exit code 4: somebody else moved a stage first.
    """
    from pipeline import promotion
    from pipeline.workspace_promotion import acting

    by = acting(workspace, name, key, dropped=True)
    moved = promotion.archive(by.registry, name, version, reason=reason, actor=by.actor, key=by.key)
    _print_moved(moved, json_output)


def _time(ctx: click.Context, option: click.Parameter, value: str | None) -> datetime | None:
    """An ISO 8601 time; without an offset it is this machine's local time."""
    if value is None:
        return None
    try:
        return datetime.fromisoformat(value).astimezone()
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(
            f"got {value!r}; expected ISO 8601, as 2024-02-29, 2024-02-29T12:00 or 2024-02-29T12:00:00+00:00",
            ctx,
            option,
        ) from error


@click.command()
@click.argument("name")
@click.option(
    "--at", callback=_time, metavar="TIME",
    help="Only what was recorded up to then, and what stood in each stage. ISO 8601; local time if it has no offset.",
)  # fmt: skip
@click.option("--repair", is_flag=True, help="Put every alias where the ledger says, first.")
@click.option(
    "--all",
    "every",
    is_flag=True,
    help=f"Show every event, not only the newest {EVENTS_SHOWN}; --json always does.",
)
@as_json
@click.pass_obj
def history(
    workspace: Path, name: str, at: datetime | None, repair: bool, every: bool, json_output: bool
) -> None:
    """Say who moved which version of the prefix NAME from stage to stage, when and why, and what stands where now.

    An alias that is not where the ledger says is named: it was moved by hand, or a command was stopped on the way. A
    prefix that params.yaml does not have any more has its history still.
    """
    from pipeline.show.overview import history_of

    told = history_of(workspace, name, at=at)
    if repair:
        from pipeline.ledger.events import STAGES
        from pipeline.ledger.projection import project
        from pipeline.workspace_promotion import acting

        registry = acting(workspace, name, dropped=True).registry
        for each in project(registry, name, stages=STAGES)[1]:
            click.echo(f"put right: {each}", err=True)
        told = history_of(workspace, name, at=at)
    if json_output:
        print_json(told)
    else:
        from pipeline.show.terminal import show_history

        show_history(told, newest=None if every else EVENTS_SHOWN)


COMMANDS = (promote, approve, rollback, archive, history)
