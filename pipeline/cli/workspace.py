"""Commands about the workspace: make it, start its servers and schedules, say where it stands."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.common import as_json, print_json


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@as_json
def init(folder: Path, json_output: bool) -> None:
    """Make a new workspace in FOLDER: git, DVC with a local remote, params.yaml, dvc.yaml, prefect.yaml."""
    from pipeline.versioning.workspace import init_workspace

    workspace = init_workspace(folder)
    if json_output:
        print_json({"workspace": str(workspace.root)})
        return
    click.echo(f"{workspace.root} is a workspace. Next:")
    click.echo("  1. put your data below data/ and name it, with a base model, in params.yaml; commit")
    click.echo("  2. prefixline data NAME      look at the data first")
    click.echo("  3. prefixline retrain NAME   train, judge, register")


@click.command()
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


@click.command()
@click.pass_obj
def deploy(workspace: Path) -> None:
    """Schedule every prefix that has a `schedule`, and serve the runs from this workspace, until Ctrl-C."""
    from pipeline import server_access
    from pipeline.versioning.workspace import find_workspace

    root = find_workspace(workspace).root
    server_access.enter(root)
    from flows.deploy import serve_schedules

    serve_schedules(root, say=lambda s: click.echo(s, err=True))


@click.command()
@as_json
@click.pass_obj
def status(workspace: Path, json_output: bool) -> None:
    """Say where every prefix stands: its data, its last retraining, its versions and stages."""
    from pipeline.show.overview import overview
    from pipeline.versioning.workspace import find_workspace

    state = overview(find_workspace(workspace).root)
    if json_output:
        print_json(state)
    else:
        from pipeline.show.terminal import show_overview

        show_overview(state)


@click.command()
def params() -> None:
    """List every key of params.yaml: what it means, what it takes, and its default."""
    from pipeline.show.params_reference import params_reference

    click.echo(params_reference(), nl=False)


COMMANDS = (init, up, deploy, status, params)
