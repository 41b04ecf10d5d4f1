"""A bar on stderr for work that takes long enough to wonder about."""

from __future__ import annotations

import time
from types import TracebackType

DELAY_SECONDS = 1.0
"""Shorter work shows nothing."""


class Progress:
    """Shows how far `description` is, from `DELAY_SECONDS` on; on anything but a terminal only its last state.

    Args:
        description: what is being done.
        total: in the units that `advance` counts.
    """

    def __init__(self, description: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task(description, total=total)
        self._since = time.monotonic()
        self._shown = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._bar.stop()

    def advance(self, done: int) -> None:
        """Count `done` more."""
        self._bar.advance(self._task, done)
        if not self._shown and time.monotonic() - self._since > DELAY_SECONDS:
            self._bar.start()
            self._shown = True
