"""The `prefixline` command.

Exit codes: 0 done (registered or unchanged), 1 error, 2 usage, 3 rejected by the gate, 4 somebody else moved a stage
first, 5 verified and found wrong, 130 stopped by Ctrl-C.
What a program reads goes to stdout, what a person watches to stderr. Every command imports what it needs when
it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import atexit
import gc
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.errors import ConflictError, PrefixlineError, disk_fault

if TYPE_CHECKING:
    from pipeline.outcome import Outcome
    from pipeline.promotion import Moved
    from pipeline.tracking.connection import Registry

EXIT_ERROR = 1
EXIT_REJECTED = 3
EXIT_CONFLICT = 4
EXIT_WRONG = 5
EXIT_INTERRUPTED = 130


class _Commands(click.Group):
    """Turns our own errors and the disk's into a message on stderr and exit code 1 or 4; others are our bugs."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PrefixlineError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(EXIT_CONFLICT if isinstance(error, ConflictError) else EXIT_ERROR)
        except OSError as error:
            if (message := disk_fault(error)) is None:
                raise
            click.echo(f"error: {message}", err=True)
            ctx.exit(EXIT_ERROR)
        except KeyboardInterrupt:
            resumes = ctx.invoked_subcommand in ("retrain", "compare")
            click.echo(
                "stopped; nothing is lost: the same command goes on from the last checkpoint"
                if resumes
                else "stopped",
                err=True,
            )
            ctx.exit(EXIT_INTERRUPTED)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--workspace",
    "-w",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="The workspace folder, or one below it; the current folder if not given.",
)
@click.version_option(package_name="prefixline", help="Print the version and exit.")
@click.pass_context
def main(ctx: click.Context, workspace: Path) -> None:
    """Train, judge, register, promote and audit prefixes for frozen transformers models."""
    from pipeline.environment import quiet_environment

    for name, value in quiet_environment(offline=False).items():
        os.environ.setdefault(name, value)
    # At the end Python would search a million living objects for garbage, which takes two seconds.
    atexit.register(gc.freeze)
    ctx.obj = workspace


@contextmanager
def _without_collector() -> Iterator[None]:
    """Work without looking for garbage, of which an import, for one, has none: a fifth faster."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


as_json = click.option("--json", "json_output", is_flag=True, help="Print one JSON object and nothing else.")


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@as_json
def init(folder: Path, json_output: bool) -> None:
    """Make a new workspace in FOLDER: git, DVC with a local remote, params.yaml, dvc.yaml, prefect.yaml."""
    from pipeline.versioning.workspace import init_workspace

    workspace = init_workspace(folder)
    if json_output:
        _print_json({"workspace": str(workspace.root)})
        return
    click.echo(f"{workspace.root} is a workspace. Next:")
    click.echo("  1. put your data below data/ and name it, with a base model, in params.yaml; commit")
    click.echo("  2. prefixline data NAME      look at the data first")
    click.echo("  3. prefixline retrain NAME   train, judge, register")


@main.command()
@click.option("--mlflow-port", type=click.IntRange(0, 65535), default=5000, show_default=True, help="0: any.")
@click.option(
    "--prefect-port", type=click.IntRange(0, 65535), default=4200, show_default=True, help="0: any."
)
@click.pass_obj
def up(workspace: Path, mlflow_port: int, prefect_port: int) -> None:
    """Start the workspace's MLflow and Prefect servers on loopback, until Ctrl-C.

    Beside them waits a process that has torch and transformers imported, so that retrainings start sooner.
    """
    from pipeline import servers
    from pipeline.versioning.workspace import find_workspace

    servers.up(
        find_workspace(workspace).root,
        mlflow_port=mlflow_port,
        prefect_port=prefect_port,
        say=lambda s: click.echo(s, err=True),
    )


@main.command()
@click.pass_obj
def deploy(workspace: Path) -> None:
    """Schedule every prefix that has a `schedule`, and serve the runs from this workspace, until Ctrl-C."""
    from pipeline import server_access
    from pipeline.versioning.workspace import find_workspace

    root = find_workspace(workspace).root
    server_access.enter(root)
    from flows.deploy import serve_schedules

    serve_schedules(root, say=lambda s: click.echo(s, err=True))


@main.command()
@click.argument("name")
@as_json
@click.pass_obj
def retrain(workspace: Path, name: str, json_output: bool) -> None:
    """Retrain the prefix NAME now: version the data, train, evaluate, and register it if it passes the gate.

    Exit code 0: registered, or unchanged since the last time; 3: rejected by the gate.
    """
    from pipeline.versioning.workspace import find_workspace

    root = find_workspace(workspace).root
    with _without_collector():
        from pipeline.retraining import already_done
    outcome = already_done(root, name) or _run_flow(root, name)
    if json_output:
        _print_json(outcome.to_json())
    else:
        from pipeline.show.terminal import show_outcome

        show_outcome(outcome)
    if outcome.outcome == "rejected":
        sys.exit(EXIT_REJECTED)


def _run_flow(root: Path, name: str) -> Outcome:
    from pipeline import private_prefect

    wait_for_prefect = private_prefect.enter(root)
    # What goes wrong is said once, at the end, by us; Prefect would print its own tracebacks before.
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
    os.environ["PREFECT_INTERNAL_LOGGING_LEVEL"] = "CRITICAL"
    logging.raiseExceptions = False
    # Somebody waits for the answer: 2 s for each request to a server that has gone, instead of 62 s.
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "1")
    with _without_collector():
        from flows.retrain import retrain_now
    if wait_for_prefect is not None:
        wait_for_prefect()
    return retrain_now(root, name)


@main.command()
@as_json
@click.pass_obj
def status(workspace: Path, json_output: bool) -> None:
    """Say where every prefix stands: its data, its last retraining, its versions and stages."""
    from pipeline.show.overview import overview
    from pipeline.versioning.workspace import find_workspace

    state = overview(find_workspace(workspace).root)
    if json_output:
        _print_json(state)
    else:
        from pipeline.show.terminal import show_overview

        show_overview(state)


@main.command()
@click.argument("version")
@as_json
@click.pass_obj
def lineage(workspace: Path, version: str, json_output: bool) -> None:
    """Say what a version was made from. VERSION is NAME, NAME:NUMBER or NAME@STAGE; NAME alone is the newest."""
    from pipeline.show.overview import lineage_of
    from pipeline.versioning.workspace import find_workspace

    record = lineage_of(find_workspace(workspace).root, version)
    if json_output:
        _print_json(record)
    else:
        from pipeline.show.terminal import show_lineage

        show_lineage(record)


with_reason = click.option("--reason", required=True, metavar="TEXT", help="Why; kept in the ledger.")
with_expectation = click.option(
    "--expect",
    metavar="VERSION|none",
    help="The version that must stand there now, `none` for none; exit code 4 if it is another.",
)


def _ledger_of(workspace: Path, name: str) -> tuple[Registry, str]:
    """The connection to MLflow, and who acts, for a prefix of the workspace."""
    from pipeline import server_access
    from pipeline.actor import actor
    from pipeline.tracking.connection import connect
    from pipeline.versioning.workspace import find_workspace

    found = find_workspace(workspace)
    found.params().prefix(name)
    where = server_access.endpoints(found.root)
    return connect(where.mlflow_uri, artifact_root=where.artifact_root), actor(found.root)


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
        _print_json(told)
    else:
        from pipeline.show.terminal import show_moved

        show_moved(moved.event, moved.state)


@main.command()
@click.argument("name")
@click.argument("version")
@click.option(
    "--to", required=True, type=click.Choice(["staging", "production"]),
    help="The stage: staging first, then production.",
)  # fmt: skip
@with_reason
@with_expectation
@as_json
@click.pass_obj
def promote(
    workspace: Path, name: str, version: str, to: Any, reason: str, expect: str | None, json_output: bool
) -> None:
    """Move VERSION of the prefix NAME up a stage. What production held goes to archived.

    Its verdict must have passed and its lineage record must verify. Exit code 4: somebody else moved a stage first;
    nothing was changed, and the message says what stands now.
    """
    from pipeline import promotion

    registry, actor = _ledger_of(workspace, name)
    moved = promotion.promote(registry, name, version, to=to, reason=reason, actor=actor, expect=expect)
    _print_moved(moved, json_output)


@main.command()
@click.argument("name")
@with_reason
@with_expectation
@as_json
@click.pass_obj
def rollback(workspace: Path, name: str, reason: str, expect: str | None, json_output: bool) -> None:
    """Bring back to production what it held before, by the ledger. What it holds goes to archived.

    A version put away by `archive` is passed over. Exit code 4: somebody else moved a stage first.
    """
    from pipeline import promotion

    registry, actor = _ledger_of(workspace, name)
    _print_moved(promotion.rollback(registry, name, reason=reason, actor=actor, expect=expect), json_output)


@main.command()
@click.argument("name")
@click.argument("version")
@with_reason
@as_json
@click.pass_obj
def archive(workspace: Path, name: str, version: str, reason: str, json_output: bool) -> None:
    """Put VERSION of the prefix NAME away, from whichever stage it stands in.

    Exit code 4: somebody else moved a stage first.
    """
    from pipeline import promotion

    registry, actor = _ledger_of(workspace, name)
    _print_moved(promotion.archive(registry, name, version, reason=reason, actor=actor), json_output)


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


@main.command()
@click.argument("name")
@click.option(
    "--at", callback=_time, metavar="TIME",
    help="Only what was recorded up to then, and what stood in each stage. ISO 8601; local time if it has no offset.",
)  # fmt: skip
@click.option("--repair", is_flag=True, help="Put every alias where the ledger says, first.")
@as_json
@click.pass_obj
def history(workspace: Path, name: str, at: datetime | None, repair: bool, json_output: bool) -> None:
    """Say who moved which version of the prefix NAME from stage to stage, when and why, and what stands where now.

    An alias that is not where the ledger says is named: it was moved by hand, or a command was stopped on the way.
    """
    from pipeline.show.overview import history_of

    if repair:
        from pipeline.ledger.events import STAGES
        from pipeline.ledger.projection import project

        registry, _ = _ledger_of(workspace, name)
        for each in project(registry, name, stages=STAGES)[1]:
            click.echo(f"put right: {each}", err=True)
    told = history_of(workspace, name, at=at)
    if json_output:
        _print_json(told)
    else:
        from pipeline.show.terminal import show_history

        show_history(told)


@main.command()
@click.option("--dataset", metavar="MD5", help="A dataset version, by DVC's hash of it.")
@click.option(
    "--row", metavar="TEXT|FILE",
    help="A row, by its text or source; or the rows of a JSONL, CSV or Parquet file with a prefix's own columns; "
    "any other file is one text.",
)  # fmt: skip
@click.option("--base", metavar="DIGEST", help="A base model, by its digest in params.yaml.")
@click.option("--code", metavar="COMMIT", help="A git commit, which the code of a version is or contains.")
@as_json
@click.pass_obj
def impact(
    workspace: Path,
    dataset: str | None,
    row: str | None,
    base: str | None,
    code: str | None,
    json_output: bool,
) -> None:
    """Say which registered versions came from a dataset version, a row, a base model or a code commit.

    All prefixes of the registry are searched, and versions that went on from an affected one are found too. A digest
    or commit may be cut to 8 characters or more. Exit code 0 with or without a version found.
    """
    from pipeline.audit import impact as audit

    options: dict[audit.Kind, str | None] = {"dataset": dataset, "row": row, "base": base, "code": code}
    given = [(kind, asked) for kind, asked in options.items() if asked is not None]
    if len(given) != 1:
        raise click.UsageError("expected exactly one of --dataset, --row, --base and --code")
    with _without_collector():  # which would double the time in which MLflow lists thousands of versions
        result = audit.impact(workspace, *given[0])
    if json_output:
        _print_json(result)
    else:
        from pipeline.show.terminal import show_impact

        show_impact(result)


@main.command()
@click.argument("versions", required=False)
@as_json
@click.pass_obj
def verify(workspace: Path, versions: str | None, json_output: bool) -> None:
    """Hash every file of registered versions again, and follow them to everything they were made from.

    VERSIONS is NAME, NAME:NUMBER or NAME@STAGE; every version of every prefix if not given. What the DVC cache lacks is
    fetched from its remote. Exit code 0: nothing is wrong; 5: something is, and all of it is listed.
    """
    from pipeline.audit import verification

    found = verification.verify(workspace, versions)
    if json_output:
        _print_json(found.to_json())
    else:
        from pipeline.show.terminal import show_verification

        show_verification(found.to_json())
    if not found.sound:
        sys.exit(EXIT_WRONG)


@main.command()
@click.argument("name")
@as_json
@click.pass_obj
def data(workspace: Path, name: str, json_output: bool) -> None:
    """Validate the data of the prefix NAME and describe it, without training or registering anything."""
    from pipeline.show.overview import data_card
    from pipeline.versioning.workspace import find_workspace

    card, page = data_card(find_workspace(workspace).root, name)
    if json_output:
        _print_json(card)
    else:
        from pipeline.show.terminal import show_card

        show_card(card, page)


def _listed(ctx: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """`a,b` → (a, b)."""
    return None if value is None else tuple(part.strip() for part in value.split(",") if part.strip())


def _rates(
    ctx: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> dict[str, tuple[float, ...]]:
    """`lora=0.001,0.01` → {lora: (0.001, 0.01)}."""
    found: dict[str, tuple[float, ...]] = {}
    for value in values:
        method, equals, rates = value.partition("=")
        try:
            numbers = tuple(float(rate) for rate in rates.split(",") if rate.strip())
        except ValueError:
            numbers = ()
        if not (equals and numbers):
            raise click.BadParameter(
                f"got {value!r}; expected METHOD=RATE,RATE,… as in lora=0.001,0.003", ctx, option
            )
        if method in found:
            raise click.BadParameter(f"got {method} twice; expected each method once", ctx, option)
        found[method] = numbers
    return found


@main.command()
@click.argument("name")
@click.option(
    "--methods", callback=_listed, metavar="NAME,…",
    help="Of prefix, prompt, ptuning, lora, probe; all that the task has if not given.",
)  # fmt: skip
@click.option(
    "--seeds", type=click.IntRange(1), default=1, show_default=True,
    help="Trainings of each method at its best learning rate.",
)  # fmt: skip
@click.option(
    "--rates", multiple=True, callback=_rates, metavar="METHOD=RATE,…",
    help="Learning rates to try for a method instead of its usual ones; may be given for several.",
)  # fmt: skip
@click.option("--max-steps", type=click.IntRange(1), help="Optimiser steps of each training, at most.")
@click.option(
    "--lora-rank", type=click.IntRange(1),
    help="LoRA's rank; if not given, the one whose trainable parameters are nearest in number to the prefix's.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False),
    help="Where everything goes; reports/NAME/compare in the workspace if not given.",
)  # fmt: skip
@as_json
@click.pass_obj
def compare(
    workspace: Path,
    name: str,
    methods: tuple[str, ...] | None,
    seeds: int,
    rates: dict[str, tuple[float, ...]],
    max_steps: int | None,
    lora_rank: int | None,
    out: Path | None,
    json_output: bool,
) -> None:
    """Compare prefix tuning with other methods on the data of the prefix NAME.

    Trains each method on the same rows with the same budget, chooses its learning rate on validation rows, and reports
    quality, size, time, memory and latency. Registers nothing. Run again, it goes on from the trainings that are done.
    """
    from pipeline.compare import comparison

    result = comparison.compare(
        workspace, name, names=methods, rates=rates, seeds=seeds, max_steps=max_steps, lora_rank=lora_rank,
        out=out, say=lambda line: click.echo(line, err=True),
    )  # fmt: skip
    if json_output:
        _print_json(result)
    else:
        from pipeline.show.terminal import show_comparison

        show_comparison(result)


@main.command()
def params() -> None:
    """List every key of params.yaml: what it means, what it takes, and its default."""
    from pipeline.show.params_reference import params_reference

    click.echo(params_reference(), nl=False)
