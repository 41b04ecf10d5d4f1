"""Commands that ask where a version came from, what came of something, whether all of it is still true; and export it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from pipeline.cli.common import EXIT_WRONG, as_json, print_json, without_collector
from pipeline.cli.keys import with_key

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


def public_key(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Refuse what is no public key."""
    if value is not None and not re.fullmatch("[0-9a-f]{64}", value):
        raise click.BadParameter(
            f"got {value!r}; expected 64 hex characters, as `prefixline export --key` prints them"
        )
    return value


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
        from pipeline.show.terminal_audit import show_lineage

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
    or commit may be cut to 7 characters or more. Exit code 0 with or without a version found.
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
@click.option(
    "--offline", metavar="BUNDLE", type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Verify this folder, which `prefixline export` wrote, by itself: without a workspace, MLflow or a network.",
)  # fmt: skip
@click.option(
    "--public-key", metavar="HEX", callback=public_key,
    help="With --offline: by whom the bundle must be signed, 64 hex characters. Without it, who signed is only named.",
)  # fmt: skip
@as_json
@click.pass_obj
def verify(
    workspace: Path, versions: str | None, offline: Path | None, public_key: str | None, json_output: bool
) -> None:
    """Hash every file of registered versions again, and follow them to everything they were made from.

    VERSIONS is NAME, NAME:NUMBER or NAME@STAGE; every version of every prefix if not given. What the DVC cache lacks is
    fetched from its remote. Exit code 0: nothing is wrong; 5: something is, and all of it is listed.
    """
    if offline is not None:
        if versions is not None:
            raise click.UsageError("expected VERSIONS or --offline, not both: a bundle is verified by itself")
        _verify_offline(offline, public_key, json_output)
        return
    if public_key is not None:
        raise click.UsageError("--public-key is of use with --offline only")
    from pipeline.audit import verification

    found = verification.verify(workspace, versions)
    if json_output:
        print_json(found.to_json())
    else:
        from pipeline.show.terminal import show_verification

        show_verification(found.to_json())
    if not found.sound:
        sys.exit(EXIT_WRONG)


def _verify_offline(bundle: Path, public_key: str | None, json_output: bool) -> None:
    from pipeline.export.offline import verify_offline

    found = verify_offline(bundle, public_key)
    if json_output:
        print_json(found.to_json())
    else:
        from pipeline.show.terminal import show_signers, show_verification

        show_verification(found.verification.to_json())
        show_signers(found.signed_by, asked=public_key)
    if not found.verification.sound:
        sys.exit(EXIT_WRONG)


@click.command()
@click.argument("version")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR",
    help="The folder to make; NAME-NUMBER in the current one if not given, for peft NAME-NUMBER-peft.",
)  # fmt: skip
@click.option(
    "--format", "form", type=click.Choice(["bundle", "peft"]), default="bundle", show_default=True,
    help="All that is needed to use and verify the version elsewhere, or its adapter alone, as PEFT loads it.",
)  # fmt: skip
@with_key
@as_json
@click.pass_obj
def export(
    workspace: Path, version: str, out: Path | None, form: str, key: Path | None, json_output: bool
) -> None:
    """Write a registered version to a new folder, for use where there is no MLflow.

    VERSION is NAME, NAME:NUMBER or NAME@STAGE; NAME alone is the newest. A bundle holds the adapter, the registered model,
    the lineage record, the ledger of the prefix, OpenLineage events, SLSA provenance and a model card;
    `prefixline verify --offline` verifies it by itself.
    """
    if form == "peft" and key is not None:
        raise click.UsageError("--key signs a bundle's provenance, and --format peft has none")
    from pipeline.actor import signing_key
    from pipeline.export import bundle

    if form == "peft":
        made = bundle.export_adapter(workspace, version, out)
    else:
        made = bundle.export_bundle(workspace, version, out, signing_key(key))
    if json_output:
        print_json(made.to_json())
    else:
        click.echo(
            f"{made.name} version {made.version}: {made.files:,} files, {made.bytes:,} bytes in {made.folder}"
        )
        if form == "bundle":
            click.echo("not signed" if made.signed_by is None else f"signed by {made.signed_by}")


def _tolerances(ctx: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    """`accuracy=0.01` → {accuracy: 0.01}, among the defaults of the other metrics."""
    from pipeline.audit.remade import DEFAULT_TOLERANCE

    found = dict(DEFAULT_TOLERANCE)
    for given in values:
        metric, _, number = given.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if metric not in found or not 0 <= value < float("inf"):
            raise click.BadParameter(
                f"got {given!r}; expected METRIC=NUMBER, as accuracy=0.01, with one of {', '.join(found)}",
                ctx,
                option,
            )
        found[metric] = value
    return found


@click.command()
@click.argument("version")
@click.option(
    "--tolerance", "tolerances", multiple=True, callback=_tolerances, metavar="METRIC=NUMBER",
    help="How far a metric may be off, in its own unit, where the files are not the same to the bit; may be given for "
    "several. If not given: accuracy, macro_f1, calibration_error and rouge_l 0.005, bleu and chrf 0.5, loss 0.01, "
    "perplexity 0.1.",
)  # fmt: skip
@as_json
@click.pass_obj
def reproduce(workspace: Path, version: str, tolerances: dict[str, float], json_output: bool) -> None:
    """Train a version again from its lineage record and compare. VERSION is NAME:NUMBER or NAME@STAGE.

    Nothing is registered, and workspace and MLflow stay as they are. Exit code 0: the files are the same to the bit, or the
    metrics are within the tolerance (it says which); 5: neither, and what differs is listed.
    """
    from pipeline.audit import reproduction

    found = reproduction.reproduce(workspace, version, tolerances)
    if json_output:
        print_json(found.to_json())
    else:
        from pipeline.show.terminal_reproduction import show_reproduction

        show_reproduction(found.to_json())
    if not found.reproduced:
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

    Exit code 0: nothing is wrong, or nothing was verified; 5: something is, or the ledger is not what was written.
    """
    from pipeline.audit.prefix_audit import audit
    from pipeline.errors import IntegrityError
    from pipeline.show.printable import printable
    from pipeline.versioning.workspace import find_workspace

    _check_output(json_output, html_output, out)
    root = find_workspace(workspace).root
    try:
        found = audit(root, name, verified=verified)
    except IntegrityError as error:  # of the ledger, without which nothing else can be said
        click.echo(f"error: {printable(str(error))}", err=True)
        sys.exit(EXIT_WRONG)
    if json_output:
        print_json(found)
    elif html_output:
        from pipeline.show import audit_page

        click.echo(audit_page.write(found, out or audit_page.default_path(root, found)))
    else:
        from pipeline.show.terminal_audit import show_audit

        show_audit(found)
    if found["verification"] is not None and not found["verification"]["sound"]:
        sys.exit(EXIT_WRONG)


COMMANDS = (lineage, impact, verify, audit_command, export, reproduce)
