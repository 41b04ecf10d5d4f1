"""Numbers of things, in words."""

from __future__ import annotations


def counted(number: int, one: str, many: str | None = None) -> str:
    """`1 version`, `2 versions`; `many` where that is not `one` and an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
