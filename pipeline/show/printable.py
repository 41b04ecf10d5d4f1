"""Somebody's words on a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` without what would steer the terminal."""
    return "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in text)
