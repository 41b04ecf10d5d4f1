"""The terminal that tables are printed in, and what of other people's words may reach it."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from pipeline.show.printable import printable


def console() -> Console:
    """Standard output, as wide as it is; where it is no terminal, wide enough for digests."""
    # A pipe has no width; tables that are cut there lose digests.
    found = Console(highlight=False, soft_wrap=False)
    return found if found.is_terminal else Console(highlight=False, width=160)


def plain(text: str) -> str:
    """Somebody's words, without what would steer the terminal."""
    return escape(printable(text))
