"""The `prefixline` command.

Exit codes: 0 done (registered or unchanged), 1 error, 2 usage, 3 rejected by the gate, or refused by a rule or
an approver, 4 somebody else moved a stage first, 5 verified and found wrong, or not reproduced, 6 waiting for
approval, 130 stopped by Ctrl-C.
What a program reads goes to stdout, what a person watches to stderr. Every command imports what it needs when
it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import atexit
import gc
import os
from pathlib import Path
from typing import Any

import click

from pipeline.cli import audit, erasure, keys, stages, training, workspace
from pipeline.cli.common import EXIT_CONFLICT, EXIT_ERROR, EXIT_INTERRUPTED, EXIT_REJECTED
from pipeline.errors import ConflictError, PrefixlineError, RefusedError, disk_fault
from pipeline.show.printable import printable

_EXITS: dict[type[PrefixlineError], int] = {ConflictError: EXIT_CONFLICT, RefusedError: EXIT_REJECTED}
"""Of errors that have an exit code of their own."""


class _Commands(click.Group):
    """Turns our own errors and the disk's into a message on stderr and an exit code; others are our bugs."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PrefixlineError as error:
            click.echo(f"error: {printable(str(error))}", err=True)
            ctx.exit(_EXITS.get(type(error), EXIT_ERROR))
        except OSError as error:
            if (message := disk_fault(error)) is None:
                raise
            click.echo(f"error: {message}", err=True)
            ctx.exit(EXIT_ERROR)
        except KeyboardInterrupt:
            resumes = ctx.invoked_subcommand in ("retrain", "compare", "erase")
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


for command in (
    *workspace.COMMANDS,
    *training.COMMANDS,
    *stages.COMMANDS,
    *audit.COMMANDS,
    *erasure.COMMANDS,
    *keys.COMMANDS,
):
    main.add_command(command)
