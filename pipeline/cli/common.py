"""What the commands share: exit codes, options, and how an answer is printed."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

EXIT_ERROR = 1
EXIT_REJECTED = 3
EXIT_CONFLICT = 4
EXIT_WRONG = 5
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


def print_json(value: Any) -> None:
    """Print one JSON object."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
