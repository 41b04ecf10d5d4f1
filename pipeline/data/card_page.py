"""The dataset card as one self-contained page."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.data.card import QUANTILES
from pipeline.data.splits import SPLITS

TEMPLATES = Path(__file__).parents[1] / "templates"
CLASSES_UNFOLDED = 30
"""A longer table of classes scrolls in a box of its own."""

PLOT = {"width": 600, "height": 190, "left": 52, "right": 8, "top": 22, "bottom": 34}
"""Histogram geometry, in SVG units."""


def render(card: Mapping[str, Any]) -> str:
    """The page of a card made by `card.build_card`, also of one read back from card.json."""
    from markupsafe import Markup

    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = _environment().get_template("card.html.j2")
    # The script is a file of this package, and holds nothing of the data's.
    trusted = Markup(script)  # noqa: S704
    return str(page.render(**_view(card), script=trusted, script_hash=f"sha256-{digest}"))


@cache
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = lambda number: f"{number:,}"
    environment.filters["share"] = lambda part, whole: f"{100 * part / whole:.1f} %" if whole else "–"
    return environment


def _view(card: Mapping[str, Any]) -> dict[str, Any]:
    """The card, and what the template would otherwise have to compute."""
    total = sum(card["rows"].values())
    return {
        "card": card,
        "total": total,
        "splits": SPLITS,
        "title": _title(card["raw"]["files"]),
        "summary": _summary(card, total),
        "tiles": _tiles(card, total),
        "classes": _classes(card["classes"], card["labels"]),
        "references": sorted((int(size), count) for size, count in card["references"]["sources"].items())
        if card["references"]
        else [],
        "quantiles": [*QUANTILES, "mean"],
        "folded": len(card["classes"] or ()) > CLASSES_UNFOLDED,
        "plots": _plots(card["tokens"]),
    }


def _title(files: Mapping[str, Any]) -> str:
    names = sorted(files)
    return names[0] if len(names) == 1 else f"{len(names)} files, {names[0]} to {names[-1]}"


def _summary(card: Mapping[str, Any], total: int) -> str:
    if card["task"] == "classification":
        said = f"{total:,} texts in {len(card['labels'])} classes"
    else:
        said = f"{total:,} sources with {card['references']['total']:,} references"
    changes = card["changes"]
    if changes is None:
        return f"{said}, from {card['raw']['rows']:,} rows of {card['raw']['format']}. The first version that was seen."
    if not changes["added"] and not changes["removed"]:
        return f"{said}; the same rows as in the version before."
    return f"{said}; {changes['added']:,} added and {changes['removed']:,} removed since the version before."


def _tiles(card: Mapping[str, Any], total: int) -> list[dict[str, str]]:
    params, rows = card["split_params"], card["rows"]
    tiles = [
        {
            "name": split.capitalize(),
            "figure": f"{rows[split]:,}",
            "note": f"{100 * rows[split] / total:.1f} % of the rows; {100 * params[split]:g} % wanted",
        }
        for split in SPLITS
    ]
    duplicates = card["duplicates"]
    tiles.append(
        {
            "name": "Duplicates left out",
            "figure": f"{duplicates['dropped']:,}",
            "note": f"{duplicates['near']:,} near-duplicates kept, in the same split as their like",
        }
    )
    if card["conflicting_labels"] is not None:
        torn = card["conflicting_labels"]
        tiles.append(
            {
                "name": "Texts with several labels",
                "figure": f"{torn['texts']:,}",
                "note": f"{torn['rows']:,} rows, kept as they are"
                if torn["texts"]
                else "each text has one label",
            }
        )
    else:
        references = card["references"]
        tiles.append(
            {
                "name": "References a source",
                "figure": f"{references['mean']:.2f}",
                "note": f"at most {references['max']:,}",
            }
        )
    longest = max(card["tokens"]["input"]["quantiles"][split]["max"] for split in SPLITS)
    tiles.append(
        {
            "name": "Longest input",
            "figure": f"{longest:,} tokens",
            "note": f"room for {card['tokens']['limit']:,}; {card['too_long']['dropped']:,} rows dropped and"
            f" {card['too_long']['truncated']:,} shortened to fit",
        }
    )
    return tiles


def _classes(
    classes: Mapping[str, Mapping[str, int]] | None, labels: Sequence[str] | None
) -> list[dict[str, Any]]:
    if classes is None or labels is None:
        return []
    totals = {label: sum(counts.values()) for label, counts in classes.items()}
    most = max(totals.values())
    return [
        {"label": label, "total": totals[label], "part": round(100 * totals[label] / most, 1), **counts}
        for label, counts in ((label, classes[label]) for label in labels)
    ]


def _plots(tokens: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = {"input": "Input", "target": "Target"}
    return [
        {
            "name": name,
            "quantiles": tokens[key]["quantiles"],
            **_histogram(tokens[key]["histogram"], tokens["limit"]),
        }
        for key, name in names.items()
        if key in tokens
    ]


def _histogram(histogram: Mapping[str, Sequence[int]], limit: int) -> dict[str, Any]:
    """Bars, axis marks and, where the limit lies within the plot, its place; all in SVG units."""
    edges = histogram["edges"]
    totals = [sum(counts) for counts in zip(*(histogram[split] for split in SPLITS), strict=True)]
    width = PLOT["width"] - PLOT["left"] - PLOT["right"]
    height = PLOT["height"] - PLOT["top"] - PLOT["bottom"]
    floor = PLOT["top"] + height
    high = _round_up(max(totals))
    # A gap between bars, while they are wide enough to spare it.
    each = width / len(totals)
    gap = 1.5 if each > 5 else 0.5
    end = edges[-1]
    step = max(1, _round_up(end) // 5)
    return {
        "geometry": PLOT,
        "floor": floor,
        "bars": [
            {
                "x": round(PLOT["left"] + place * each, 2),
                "y": round(floor - height * total / high, 2),
                "width": round(each - gap, 2),
                "height": round(height * total / high, 2),
                "title": f"{_span(first, last)}: {total:,}",
            }
            for place, (total, first, last) in enumerate(zip(totals, edges[:-1], edges[1:], strict=True))
        ],
        "ticks_x": [
            {"x": round(PLOT["left"] + width * value / end, 2), "text": f"{value:,}"}
            for value in range(0, end + 1, step)
        ],
        "ticks_y": [
            {"y": round(floor - height * share, 2), "text": f"{int(high * share):,}"} for share in (0, 0.5, 1)
        ],
        "limit": round(PLOT["left"] + width * limit / end, 2) if limit <= end else None,
    }


def _span(first: int, last: int) -> str:
    return f"{first} tokens" if last - first == 1 else f"{first} to {last - 1} tokens"


def _round_up(value: int) -> int:
    """The next of 2, 4, 6, 10, 20, 40, 60, 100, … so that halves are whole."""
    unit = 1
    while True:
        for step in (2, 4, 6, 10):
            if value <= step * unit:
                return step * unit
        unit *= 10
