"""Commands that ask where a version came from, what came of something, and whether all of it is still true."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pipeline.cli.common import EXIT_WRONG, as_json, print_json, without_collector

as_page = click.option(
    "--html", "html_output", is_flag=True, help="Write it as a page for a browser, and print where."
)
page_path = click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Where the page is written; below reports/ of the workspace if not given.",
)  # fmt: skip


def _check_output(json_output: bool, html_output: bool, out: Path | None) -> None:
    if json_output and html_output:
        raise click.UsageError("expected --json or --html, not both")
    if out is not None and not html_output:
        raise click.UsageError("--out says where a page is written; it needs --html")
    if out is not None and out.parent.exists() and not out.parent.is_dir():
        raise click.UsageError(f"--out {out}: {out.parent} is a file; expected a folder")


@click.command()
@click.argument("version")
@as_page
@page_path
@as_json
@click.pass_obj
def lineage(workspace: Path, version: str, html_output: bool, out: Path | None, json_output: bool) -> None:
    """Say what a version was made from, and what went on from it.

    VERSION is NAME, NAME:NUMBER or NAME@STAGE; NAME alone is the newest. With --json its lineage record alone.
    """
    from pipeline.versioning.workspace import find_workspace

    _check_output(json_output, html_output, out)
    root = find_workspace(workspace).root
    if json_output:
        from pipeline.show.overview import lineage_of

        print_json(lineage_of(root, version))
        return
    from pipeline.audit.ancestry import ancestry

    found = ancestry(root, version)
    if html_output:
        from pipeline.show import lineage_page

        click.echo(lineage_page.write(found, out or lineage_page.default_path(root, found)))
    else:
        from pipeline.show.audit_terminal import show_lineage

        show_lineage(found)


@click.command()
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
    with without_collector():  # which would double the time in which MLflow lists thousands of versions
        result = audit.impact(workspace, *given[0])
    if json_output:
        print_json(result)
    else:
        from pipeline.show.terminal import show_impact

        show_impact(result)


@click.command()
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
        print_json(found.to_json())
    else:
        from pipeline.show.terminal import show_verification

        show_verification(found.to_json())
    if not found.sound:
        sys.exit(EXIT_WRONG)


@click.command("audit")
@click.argument("name")
@click.option(
    "--verify/--no-verify", "verified", default=True,
    help="Hash every file of every version again, as `verify` does; without it the answer says so.",
)  # fmt: skip
@as_page
@page_path
@as_json
@click.pass_obj
def audit_command(
    workspace: Path, name: str, verified: bool, html_output: bool, out: Path | None, json_output: bool
) -> None:
    """Say all that is known of the prefix NAME: stages, events, versions, verdicts, lineage, and whether it verifies.

    Exit code 0: nothing is wrong, or nothing was verified; 5: something is.
    """
    from pipeline.audit.prefix_audit import audit
    from pipeline.versioning.workspace import find_workspace

    _check_output(json_output, html_output, out)
    root = find_workspace(workspace).root
    found = audit(root, name, verified=verified)
    if json_output:
        print_json(found)
    elif html_output:
        from pipeline.show import audit_page

        click.echo(audit_page.write(found, out or audit_page.default_path(root, found)))
    else:
        from pipeline.show.audit_terminal import show_audit

        show_audit(found)
    if found["verification"] is not None and not found["verification"]["sound"]:
        sys.exit(EXIT_WRONG)


COMMANDS = (lineage, impact, verify, audit_command)
