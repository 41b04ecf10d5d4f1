"""The command that takes a row out of data and versions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from pipeline.cli.common import EXIT_ERROR, EXIT_REJECTED, EXIT_WRONG, as_json, print_json, without_collector
from pipeline.cli.training import retrain_prefix
from pipeline.errors import PrefixlineError


@click.command()
@click.option(
    "--row", required=True, metavar="TEXT|FILE",
    help="The row, by its text or source, whatever its label; or the rows of a JSONL, CSV or Parquet file with a prefix's "
    "own columns; any other file is one text.",
)  # fmt: skip
@click.option(
    "--reason", metavar="TEXT", help="Why; kept in the ledger for ever, so it should not name the row."
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@as_json
@click.pass_obj
def erase(workspace: Path, row: str, reason: str | None, dry_run: bool, json_output: bool) -> None:
    """Take a row out of the data of all prefixes, mark the versions that saw it, and retrain their prefixes.

    A marked (tainted) version is never promoted again, nor gone on from. It stays where it stands until a version made
    without the row takes its place, which is for you to promote: the command says where. Run again, it goes on where it was
    cut off. Exit code 0: done; 1: error, in a retraining too; 3: the gate rejected a retraining; 5: all of it is done, but of some
    versions it cannot be told whether they saw the row.
    """
    from pipeline.audit import erasure

    with without_collector():
        done = erasure.erase(
            workspace, row, reason=erasure.REASON if reason is None else reason, dry_run=dry_run
        )
    told: dict[str, Any] = {
        "dry_run": dry_run,
        "row": done.row,
        "rows": done.rows,
        "searched": done.searched,
        "complete": done.complete,
        "versions": list(done.versions),
        "unknown": list(done.unknown),
        "by_hand": list(done.by_hand),
        "tainted": [f"{name}:{number}" for name, number in done.tainted],
        "removed": dict(done.removed),
        "retrain": list(done.retrain),
        "left_out": list(done.left_out),
        "not_erased": list(done.not_erased),
        "retrained": [] if dry_run else [_retrained(workspace, name) for name in done.retrain],
        "in_use": erasure.in_use(
            workspace, {(version["name"], version["version"]) for version in done.versions}
        ),
    }
    if json_output:
        print_json(told)
    else:
        from pipeline.show.terminal_erasure import show_erasure

        show_erasure(told)
    if any(each["error"] for each in told["retrained"]):
        sys.exit(EXIT_ERROR)
    if any(each["outcome"] == "rejected" for each in told["retrained"]):
        sys.exit(EXIT_REJECTED)
    if not done.complete:
        sys.exit(EXIT_WRONG)


def _retrained(workspace: Path, name: str) -> dict[str, str | None]:
    """What came of the prefix's retraining; an error is said and does not keep the others from theirs."""
    try:
        outcome = retrain_prefix(workspace, name)
    except PrefixlineError as error:
        return {"name": name, "outcome": None, "version": None, "error": str(error)}
    return {"name": name, "outcome": outcome.outcome, "version": outcome.version, "error": None}


COMMANDS = (erase,)
