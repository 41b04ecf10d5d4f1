"""Plain JSON objects as tables: the dataset card, parameters and the lineage record, whatever keys they grow."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_HASH = re.compile(r"[0-9a-f]{32}(\.dir)?|[0-9a-f]{40}|[0-9a-f]{64}")
_SHOWN = 24
"""Items of a list that are shown before the rest is counted."""

Table = dict[str, Any]


def cell(value: Any) -> dict[str, Any]:
    """{text, is_hash}: one value as a reader wants it; hashes are marked so that they can be copied."""
    if isinstance(value, bool):
        text = "yes" if value else "no"
    elif value is None:
        text = "–"
    elif isinstance(value, float):
        text = f"{value:.6g}"
    elif isinstance(value, list | tuple):
        shown = [cell(item)["text"] for item in value[:_SHOWN]]
        more = f" and {len(value) - _SHOWN:,} more" if len(value) > _SHOWN else ""
        text = ", ".join(shown) + more or "none"
    elif isinstance(value, Mapping):
        text = ", ".join(f"{key}: {cell(item)['text']}" for key, item in value.items()) or "none"
    else:
        text = str(value)
    return {"text": text, "is_hash": _HASH.fullmatch(text) is not None}


def facts(caption: str, values: Mapping[str, Any]) -> Table | None:
    """A table of names and values, or None where there are none."""
    if not values:
        return None
    rows = [{"key": words(key), "cells": [cell(value)]} for key, value in values.items()]
    return {"caption": caption, "columns": [], "rows": rows}


def tables(values: Mapping[str, Any], caption: str) -> list[Table]:
    """One table per mapping inside `values`, after one captioned `caption` for what is not a mapping.

    A mapping of mappings that share their keys (rows per class and split) becomes one grid.
    """
    plain = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    found = [facts(caption, plain)]
    for key, value in values.items():
        if isinstance(value, Mapping):
            found.append(_grid(words(key), value) or facts(words(key), dict(_flat(value))))
    return [table for table in found if table is not None]


def lineage_tables(record: Mapping[str, Any]) -> list[Table]:
    """The record in sections; what the page already shows elsewhere (parameters, metrics, verdict) is left out."""
    shown = {key: value for key, value in record.items() if key not in ("params", "metrics", "verdict")}
    plain = {key: value for key, value in shown.items() if not isinstance(value, Mapping)}
    found = [facts("Retraining", plain)]
    found += [
        _verbatim(words(key), dict(_flat(value)))
        for key, value in shown.items()
        if isinstance(value, Mapping)
    ]
    return [table for table in found if table is not None]


def words(key: str) -> str:
    """`best_validation_loss` as `Best validation loss`; names of files and other odd keys stay as they are."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", key):
        return key
    text = key.replace("_", " ")
    return text[:1].upper() + text[1:]


def _flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as (path, value); a manifest's file names keep their slashes and dots."""
    for key, value in values.items():
        here = f"{path} · {key}" if path else str(key)
        if isinstance(value, Mapping) and value:
            yield from _flat(value, here)
        else:
            yield here, value


def _verbatim(caption: str, values: Mapping[str, Any]) -> Table | None:
    table = facts(caption, values)
    if table is not None:
        for row, key in zip(table["rows"], values, strict=True):
            row["key"] = key.replace("_", " ") if re.fullmatch(r"[a-z_]+", key) else key
    return table


def _grid(caption: str, values: Mapping[str, Any]) -> Table | None:
    inner = [value for value in values.values() if isinstance(value, Mapping)]
    if len(inner) < 2 or len(inner) < len(values):
        return None
    columns = list(dict.fromkeys(key for value in inner for key in value))
    scalar = all(not isinstance(item, Mapping | list | tuple) for value in inner for item in value.values())
    if not scalar or not 1 <= len(columns) <= 6:
        return None
    rows = [
        {"key": str(key), "cells": [cell(_thousands(value.get(column))) for column in columns]}
        for key, value in values.items()
    ]
    return {"caption": caption, "first": "", "columns": [words(column) for column in columns], "rows": rows}


def _thousands(value: Any) -> Any:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
