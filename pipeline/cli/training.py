"""Commands that look at data and train: retrain, data, compare."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.common import EXIT_REJECTED, as_json, enter_prefect, print_json, without_collector

if TYPE_CHECKING:
    from pipeline.outcome import Outcome


@click.command()
@click.argument("name")
@as_json
@click.pass_obj
def retrain(workspace: Path, name: str, json_output: bool) -> None:
    """Retrain the prefix NAME now: version the data, train, evaluate, and register it if it passes the gate.

    Exit code 0: registered, or unchanged since the last time; 3: rejected by the gate.
    """
    outcome = retrain_prefix(workspace, name)
    if json_output:
        print_json(outcome.to_json())
    else:
        from pipeline.show.terminal import show_outcome

        show_outcome(outcome)
    if outcome.outcome == "rejected":
        sys.exit(EXIT_REJECTED)


def retrain_prefix(workspace: Path, name: str) -> Outcome:
    """Retrain the prefix `name` by its Prefect flow, unless nothing has changed since the last time."""
    from pipeline.versioning.workspace import find_workspace

    root = find_workspace(workspace).root
    with without_collector():
        from pipeline.retraining import already_done
    return already_done(root, name) or _run_flow(root, name)


def _run_flow(root: Path, name: str) -> Outcome:
    _start_prefect(root)
    from flows.retrain import retrain_now

    return retrain_now(root, name)


@cache
def _start_prefect(root: Path) -> None:
    """Have Prefect and a server of its own ready, once however many prefixes are retrained."""
    wait_for_prefect = enter_prefect(root)
    with without_collector():
        import flows.retrain  # noqa: F401  (while the server gets ready)
    if wait_for_prefect is not None:
        wait_for_prefect()


@click.command()
@click.argument("name")
@as_json
@click.pass_obj
def data(workspace: Path, name: str, json_output: bool) -> None:
    """Validate the data of the prefix NAME and describe it, without training or registering anything."""
    from pipeline.show.overview import data_card
    from pipeline.versioning.workspace import find_workspace

    card, page = data_card(find_workspace(workspace).root, name)
    if json_output:
        print_json(card)
    else:
        from pipeline.show.terminal import show_card

        show_card(card, page)


def _methods(ctx: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """`prefix,LoRA` → (prefix, lora)."""
    if value is None:
        return None
    return tuple(_method(part, ctx, option) for part in value.split(",") if part.strip())


def _method(name: str, ctx: click.Context, option: click.Parameter) -> str:
    from pipeline.compare.methods import METHODS

    name = name.strip().lower()
    if name not in METHODS:
        raise click.BadParameter(f"got {name!r}; expected some of {', '.join(METHODS)}", ctx, option)
    return name


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
        method = _method(method, ctx, option)
        if method in found:
            raise click.BadParameter(f"got {method} twice; expected each method once", ctx, option)
        found[method] = numbers
    return found


@click.command()
@click.argument("name")
@click.option(
    "--methods", callback=_methods, metavar="NAME,…",
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
        print_json(result)
    else:
        from pipeline.show.terminal import show_comparison

        show_comparison(result)


COMMANDS = (retrain, data, compare)
