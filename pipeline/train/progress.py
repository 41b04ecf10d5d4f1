"""The bar that shows a training on stderr: steps done, loss, rate and time left.

On a terminal it is redrawn in place; elsewhere (a log, a scheduled run) a line is written every `EVERY` seconds,
besides what `say` says.
"""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

EVERY = 15.0
"""Seconds between two lines where there is no terminal."""


class TrainingProgress:
    """A bar of `total` steps; use as a context manager.

    Args:
        total: steps of the whole training.
        unit: what the rate counts, e.g. "targets".
        shown: False shows nothing: of several processes one is enough to look at.
    """

    def __init__(self, total: int, *, unit: str, shown: bool = True) -> None:
        self._console = Console(stderr=True, quiet=not shown)
        self._unit = unit
        self._total = total
        self._said = time.monotonic()
        self._bar = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=total, figures="")

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, step: int, *, loss: float, rate: float) -> None:
        """Show that `step` steps are done, the last one's loss (nats) and rate (units a second)."""
        figures = f"loss {loss:.4f}  {rate:,.0f} {self._unit}/s"
        self._bar.update(self._task, completed=step, figures=figures)
        if not self._console.is_terminal and time.monotonic() - self._said >= EVERY:
            self.say(f"step {step}/{self._total}  {figures}")

    def say(self, line: str) -> None:
        """Write a line above the bar."""
        self._said = time.monotonic()
        self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
