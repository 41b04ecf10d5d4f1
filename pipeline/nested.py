"""Nested mappings, as parameters are, as one level of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def flat(values: Mapping[str, Any], between: str = ".", path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of every value that is no mapping with something in it.

    Args:
        between: what joins the keys of a path.
        path: what all paths begin with.
    """
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, between, f"{path}{key}{between}")
        else:
            yield f"{path}{key}", value
