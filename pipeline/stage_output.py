"""What the stages print while they run, on this process's stderr: they write to a pipe, whose end a person may watch."""

from __future__ import annotations

import shutil
import sys


def to_stderr(text: str) -> None:
    """Pass on a piece of what they print, as it comes."""
    sys.stderr.write(text)
    sys.stderr.flush()


def terminal() -> dict[str, str]:
    """The environment that lets them draw their bars, where stderr is a terminal; else empty."""
    if not sys.stderr.isatty():
        return {}
    return {"TTY_COMPATIBLE": "1", "COLUMNS": str(shutil.get_terminal_size().columns)}
