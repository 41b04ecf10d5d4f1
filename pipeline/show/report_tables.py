"""Plain JSON objects as tables: the dataset card, parameters and the lineage record, whatever keys they grow."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipeline import nested

Table = dict[str, Any]
"""{caption, columns, rows [{key, cells}]}; a grid has columns, and `first` above its keys."""

_HASH = re.compile(r"[0-9a-f]{32}(\.dir)?|[0-9a-f]{40}|[0-9a-f]{64}")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_BELOW = " › "
_QUANTILES = ("min", "median", "p95", "max")
_CHANGES = ("kept", "added", "removed", "labels_added", "labels_removed")
_SHOWN = 24
"""Items of a list that are shown before the rest is counted."""


def cell(value: Any, *, grouped: bool = False) -> dict[str, Any]:
    """{text, is_hash}: one value as a reader wants it; hashes are marked so that they can be copied.

    Args:
        grouped: write whole numbers as 12,000: for counts, not for seeds.
    """
    if isinstance(value, bool):
        text = "yes" if value else "no"
    elif value is None:
        text = "–"
    elif value == "":
        text = "(empty)"
    elif isinstance(value, float):
        text = f"{value:.6g}"
    elif isinstance(value, int) and grouped:
        text = f"{value:,}"
    elif isinstance(value, list | tuple):
        shown = [cell(item, grouped=grouped)["text"] for item in value[:_SHOWN]]
        more = f" and {len(value) - _SHOWN:,} more" if len(value) > _SHOWN else ""
        text = ", ".join(shown) + more or "none"
    elif isinstance(value, Mapping):
        text = (
            ", ".join(f"{key}: {cell(item, grouped=grouped)['text']}" for key, item in value.items())
            or "none"
        )
    else:
        text = str(value)
    return {"text": text, "is_hash": _HASH.fullmatch(text) is not None}


def facts(caption: str, values: Mapping[str, Any], *, grouped: bool = False) -> Table | None:
    """A table of names and values, or None where there are none; `grouped` as for `cell`."""
    if not values:
        return None
    rows = [{"key": words(key), "cells": [cell(value, grouped=grouped)]} for key, value in values.items()]
    return {"caption": caption, "columns": [], "rows": rows}


def tables(values: Mapping[str, Any], caption: str, *, grouped: bool = False) -> list[Table]:
    """One table per mapping inside `values`, after one captioned `caption` for what is not a mapping.

    A mapping of mappings that share their keys (rows per class and split) becomes one grid.
    """
    plain = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    found = [facts(caption, plain, grouped=grouped)]
    for key, value in values.items():
        if isinstance(value, Mapping):
            found.append(
                _grid(words(key), value)
                or facts(words(key), dict(nested.flat(value, _BELOW)), grouped=grouped)
            )
    return [table for table in found if table is not None]


def card_tables(card: Mapping[str, Any]) -> list[Table]:
    """The dataset card's main counts (`pipeline.data.card.build_card`); its own page has all of it."""
    plain = {"Rows in the raw files": _at(card, "raw", "rows")}
    plain |= {f"Rows for {split}": rows for split, rows in (_at(card, "rows") or {}).items()}
    plain |= {
        "Duplicates dropped": _at(card, "duplicates", "dropped"),
        "Near duplicates kept": _at(card, "duplicates", "near"),
        "Too long, dropped": _at(card, "too_long", "dropped"),
        "Too long, truncated": _at(card, "too_long", "truncated"),
        "Texts with conflicting labels": _at(card, "conflicting_labels", "texts"),
        "References": _at(card, "references", "total"),
    }
    changes = {key: value for key, value in (_at(card, "changes") or {}).items() if key in _CHANGES}
    grids = {
        "Tokens of the input": _at(card, "tokens", "input", "quantiles"),
        "Tokens of the target": _at(card, "tokens", "target", "quantiles"),
        "Rows by class": _at(card, "classes"),
    }
    found = [
        facts("Rows", {key: value for key, value in plain.items() if value is not None}, grouped=True),
        facts("Since the version before", changes, grouped=True),
    ]
    for caption, grid in grids.items():
        if grid:
            shown = {key: {k: v for k, v in row.items() if k in _QUANTILES} for key, row in grid.items()}
            found.append(_grid(caption, shown if caption.startswith("Tokens") else grid))
    return [table for table in found if table is not None]


def lineage_tables(record: Mapping[str, Any]) -> list[Table]:
    """The record in sections; what the page already shows elsewhere (parameters, metrics, verdict) is left out."""
    shown = {key: value for key, value in record.items() if key not in ("params", "metrics", "verdict")}
    plain = {key: value for key, value in shown.items() if not isinstance(value, Mapping)}
    found = [facts("Retraining", plain)]
    found += [
        facts(words(key), dict(nested.flat(value, _BELOW)))
        for key, value in shown.items()
        if isinstance(value, Mapping)
    ]
    return [table for table in found if table is not None]


def words(key: str) -> str:
    """`best_validation_loss` as `Best validation loss`; names of files and other odd keys stay as they are."""
    first, *rest = [
        part.replace("_", " ") if _NAME.fullmatch(part) else part for part in str(key).split(_BELOW)
    ]
    if _NAME.fullmatch(str(key).split(_BELOW)[0]):
        first = first[:1].upper() + first[1:]
    return _BELOW.join([first, *rest])


def _at(values: Mapping[str, Any], *path: str) -> Any:
    """What lies at `path`, or None where the path ends early."""
    found: Any = values
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _grid(caption: str, values: Mapping[str, Any]) -> Table | None:
    """`values` as a grid, where every value is a mapping of a few plain values under the same keys."""
    inner = [value for value in values.values() if isinstance(value, Mapping)]
    if len(inner) < 2 or len(inner) < len(values):
        return None
    columns = list(inner[0])
    plain = all(not isinstance(item, Mapping | list | tuple) for value in inner for item in value.values())
    if not plain or not 1 <= len(columns) <= 6 or any(value.keys() != inner[0].keys() for value in inner):
        return None
    rows = [
        {"key": str(key), "cells": [cell(value[column], grouped=True) for column in columns]}
        for key, value in values.items()
    ]
    return {"caption": caption, "first": "", "columns": [words(column) for column in columns], "rows": rows}
