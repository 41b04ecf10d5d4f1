"""Commands about the keys that events are signed with."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.common import as_json, print_json

with_key = click.option(
    "--key", type=click.Path(path_type=Path, dir_okay=False),
    help="The file of the key to sign with; PREFIXLINE_KEY, or the one that `prefixline keys new` makes, if not given.",
)  # fmt: skip


@click.group()
def keys() -> None:
    """Make and show the key that your changes of stages are signed with."""


@keys.command()
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False),
    help="Where to; PREFIXLINE_KEY, or prefixline/key.pem below XDG_CONFIG_HOME or ~/.config, if not given.",
)  # fmt: skip
@as_json
def new(out: Path | None, json_output: bool) -> None:
    """Draw a new key. The file stays with you; the public key goes into params.yaml, under `keys`."""
    from pipeline.actor import key_file
    from pipeline.keys import make_key

    path = out or key_file()
    public = make_key(path).public
    if json_output:
        print_json({"file": str(path), "public": public})
        return
    click.echo(f"{path} is a new key. In params.yaml:")
    click.echo(f"keys: {{YOUR_NAME: {public}}}")


@keys.command()
@with_key
@as_json
@click.pass_obj
def show(workspace: Path, key: Path | None, json_output: bool) -> None:
    """Print the public key, and the name that params.yaml has for it."""
    from pipeline.actor import key_file
    from pipeline.errors import WorkspaceError
    from pipeline.keys import load_key
    from pipeline.versioning.workspace import find_workspace

    path = key or key_file()
    public = load_key(path).public
    try:
        params = find_workspace(workspace).params()
    except WorkspaceError:  # a key is one's own, also where there is no workspace
        name, where = None, "there is no workspace here"
    else:
        name = next((name for name, known in params.keys.items() if known == public), None)
        where = "params.yaml does not name it" if name is None else f"keys.{name} of params.yaml"
    if json_output:
        print_json({"file": str(path), "public": public, "name": name})
        return
    click.echo(public)
    click.echo(f"{path}; {where}", err=True)


COMMANDS = (keys,)
