"""What the commands share: exit codes, options, and how an answer is printed."""

from __future__ import annotations

import gc
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

EXIT_ERROR = 1
EXIT_REJECTED = 3
EXIT_CONFLICT = 4
EXIT_WRONG = 5
EXIT_WAITING = 6
EXIT_INTERRUPTED = 130

as_json = click.option("--json", "json_output", is_flag=True, help="Print one JSON object and nothing else.")


@contextmanager
def without_collector() -> Iterator[None]:
    """Work without looking for garbage, of which an import, for one, has none: a fifth faster."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def enter_prefect(root: Path) -> Callable[[], None] | None:
    """Make this process one in which a flow of the workspace can run, before Prefect is imported.

    Returns:
        What waits until a server of its own answers, to be called last; None where the workspace's does.
    """
    from pipeline import private_prefect

    wait_for_prefect = private_prefect.enter(root)
    # What goes wrong is said once, at the end, by us; Prefect would print its own tracebacks before.
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
    os.environ["PREFECT_INTERNAL_LOGGING_LEVEL"] = "CRITICAL"
    logging.raiseExceptions = False
    # Somebody waits for the answer: 2 s for each request to a server that has gone, instead of 62 s.
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "1")
    return wait_for_prefect


def print_json(value: Any) -> None:
    """Print one JSON object; what in somebody's words would steer a terminal as JSON's escapes."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    click.echo(re.sub("[^ -~\n]", _escaped, text))


def _escaped(found: re.Match[str]) -> str:
    return found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1]
