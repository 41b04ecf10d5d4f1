"""A comparison of methods for people: the table's cells, the pictures, and one self-contained page.

What it is made from is the content of compare.json (`pipeline.compare.comparison`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.files import write_bytes
from pipeline.params import METRICS
from pipeline.show import plots
from pipeline.show.report import render
from pipeline.show.report_analysis import metric_number, metric_title
from pipeline.show.report_view import duration

PAGE = "compare.html"
_METRIC_DIGITS = 3


def summary(result: Mapping[str, Any]) -> str:
    """What was compared, in a line."""
    budget, base = result["budget"], result["base"]
    seeds = len(budget["seeds"])
    return (
        f"{result['prefix']} on {base['name']} ({base['parameters']:,} parameters): {result['rows']['train']:,} training "
        f"rows, {result['rows']['test']:,} test rows, {budget['steps']:,} steps of {budget['batch_size']}, "
        f"{seeds} seed{'s' if seeds > 1 else ''}"
    )


def columns(result: Mapping[str, Any]) -> tuple[str, ...]:
    """The headings of `rows`."""
    quality = metric_title(result["metric"])
    return (
        "Method",
        quality,
        "Against prefix",
        "Learning rate",
        "Trained",
        "Artefact",
        "Training",
        "Memory",
        "Latency",
    )


def rows(result: Mapping[str, Any]) -> list[list[list[str]]]:
    """The table: for each method the cells below `columns`, each a figure and what is said below it."""
    metric = result["metric"]
    table = []
    for method in result["methods"]:
        quality = method["quality"][metric]
        difference = None if method["difference"] is None else method["difference"][metric]
        seconds, latency = method["seconds"], method["latency_ms"]
        mean = sum(seconds) / len(seconds)
        above = method["above_base_bytes"]
        table.append(
            [
                [method["title"], method["source"]],
                [metric_number(metric, quality["figure"]), *_interval(quality, metric)],
                _against(difference, metric),
                ["–"]
                if method["rate"] is None
                else [f"{method['rate']:g}", f"{method['at_the_end']} tried" if method["at_the_end"] else f"of {len(method['tried'])}"],
                [f"{method['trainable_parameters']:,}", f"+ {method['head_parameters']:,} head"]
                if method["head_parameters"]
                else [f"{method['trainable_parameters']:,}"],
                [size(method["artefact_bytes"])],
                [duration(mean)],
                [size(method["peak_bytes"]), *([] if above is None else [f"+ {size(above)}"])],
                [f"{latency['median']:.2f} ms/row", f"{latency['low']:.2f} to {latency['high']:.2f}", f"{latency['to_prefix']:.2f} × prefix"],
            ]
        )  # fmt: skip
    return table


def _against(difference: Mapping[str, Any] | None, metric: str) -> list[str]:
    """The cell that says how a method stands to the prefix; a dash for the prefix, and where there is no figure."""
    if difference is None or difference["figure"] is None:
        return ["–"]
    amount = metric_number(metric, abs(difference["figure"]))
    side = "better" if difference["figure"] >= 0 else "worse"
    return [f"{amount} {side}", *_interval(difference, metric, signed=True)]


def size(number: float) -> str:
    """Bytes in words: `812 B`, `27.3 kB`, `1.4 MB`, in powers of 1,000."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= factor:
            return (
                f"{number / factor:.3g} {unit}" if number < 100 * factor else f"{number / factor:.0f} {unit}"
            )
    return f"{number:.0f} B"


def write(result: Mapping[str, Any], folder: Path) -> Path:
    """Write the page to `folder`/compare.html and its pictures to `folder`/plots/*.png; the page's path."""
    for name, (_, make) in _pictures(result).items():
        write_bytes(folder / "plots" / f"{name}.png", plots.png(make(plots.LIGHT)))
    path = folder / PAGE
    write_bytes(path, render("compare.html.j2", _page(result)).encode())
    return path


def _page(result: Mapping[str, Any]) -> dict[str, Any]:
    from markupsafe import Markup

    confidence = result["confidence"]
    several = len(result["budget"]["seeds"]) > 1
    table = rows(result)
    return {
        "prefix": result["prefix"],
        "task": result["task"],
        "summary": summary(result),
        "verdicts": [f"{_verdict(method, result)} {_costs(method, result)}" for method in result["methods"] if method["difference"] is not None],
        "columns": columns(result),
        "table": [
            {"key": method["method"], "cells": cells} for method, cells in zip(result["methods"], table, strict=True)
        ],
        "interval_note": f"Intervals are {100 * confidence:g} % "
        + ("over seeds (Student's)." if several else "over test rows (bootstrap); one training each.")
        + " Differences are paired: the same test rows"
        + (", the same seed." if several else "."),
        "base_latency": f"{result['base_latency_ms']['median']:.2f} ms/row",
        "figures": [
            # Escaped by the XML writer; matplotlib's text and our titles cannot close it.
            {"title": title, "svg": Markup(plots.inline_svg(make(plots.PAGE), name, title))}  # noqa: S704
            for name, (title, make) in _pictures(result).items()
        ],
        "metrics": [
            {
                "name": metric_title(name),
                "better": METRICS[name],
                "cells": [
                    [metric_number(name, method["quality"][name]["figure"]),
                     *_interval(method["quality"][name], name)]
                    for method in result["methods"]
                ],
            }
            for name in result["methods"][0]["quality"]
        ],
        "titles": [method["title"] for method in result["methods"]],
        "tried": [
            {
                "title": method["title"],
                "rate": f"{one['rate']:g}",
                "loss": "not finite" if one["diverged"] else f"{one['validation_loss']:.4f}",
                "accuracy": "–" if one["diverged"] else f"{one['validation_accuracy']:.4f}",
                "step": "–" if one["diverged"] else f"{one['best_step']:,}",
                "chosen": one["rate"] == method["rate"],
            }
            for method in result["methods"]
            if method["rate"] is not None
            for one in method["tried"]
        ],
        "details": [
            {"title": method["title"], "said": ", ".join(f"{key.replace('_', ' ')}: {_plain(value)}" for key, value in method["details"].items())}
            for method in result["methods"]
        ],
        "equal": result["equal"],
        "not_equal": result["not_equal"],
        "machine": f"{result['machine']['system']}, {result['machine']['cpus']} CPUs, threads: {result['machine']['threads'] or 'all'}",
        "digest": result["base"]["digest"],
    }  # fmt: skip


def _verdict(method: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """One sentence: how the method stands to the prefix by the headline metric."""
    metric = result["metric"]
    difference = method["difference"][metric]
    ends = _ends(difference)
    name = metric_title(metric)
    if difference["figure"] is None or ends is None:
        return f"{method['title']}: {name.lower()} could not be compared with the prefix's."
    amount = metric_number(metric, abs(difference["figure"]))
    interval = (
        f"{metric_number(metric, ends[0], signed=True)} to {metric_number(metric, ends[1], signed=True)}"
    )
    if ends[0] > 0:
        return f"{method['title']} is better than the prefix by {amount} in {name.lower()} ({interval})."
    if ends[1] < 0:
        return f"{method['title']} is worse than the prefix by {amount} in {name.lower()} ({interval})."
    return (
        f"{method['title']} and the prefix cannot be told apart by {name.lower()} here: the difference is "
        f"{metric_number(metric, difference['figure'], signed=True)} ({interval})."
    )


def _costs(method: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """One sentence: what the method takes, in multiples of the prefix."""
    prefix = next(one for one in result["methods"] if one["method"] == "prefix")

    def trained(one: Mapping[str, Any]) -> float:
        return float(one["trainable_parameters"] + one["head_parameters"])

    def seconds(one: Mapping[str, Any]) -> float:
        return float(sum(one["seconds"])) / len(one["seconds"])

    ratios = {
        "trained parameters, head included": trained(method) / trained(prefix),
        "artefact": method["artefact_bytes"] / prefix["artefact_bytes"],
        "training time": seconds(method) / max(seconds(prefix), 1e-3),
        "latency": method["latency_ms"]["to_prefix"],
    }
    return (
        "In multiples of the prefix: "
        + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
        + "."
    )


def _pictures(
    result: Mapping[str, Any],
) -> dict[str, tuple[str, Callable[[plots.Theme], Any]]]:
    """{file name without ending: (title, what draws it)}."""
    metric, methods = result["metric"], result["methods"]

    def bars(title: str, value: Callable[[Mapping[str, Any]], Any], digits: int = 1) -> Any:
        drawn = tuple(
            plots.Bar(_system(method), float(found), *(ends or (None, None)))
            for method in methods
            for found, ends in [value(method)]
            if found is not None
        )
        return title, lambda theme: plots.metric_figure(plots.MetricBars(title, title, drawn, digits), theme)

    def spread(method: Mapping[str, Any]) -> tuple[float, tuple[float, float]]:
        latency = method["latency_ms"]
        return latency["median"], (latency["low"], latency["high"])

    def seconds(method: Mapping[str, Any]) -> tuple[float, tuple[float, float] | None]:
        every: Sequence[float] = method["seconds"]
        return sum(every) / len(every), (min(every), max(every)) if len(every) > 1 else None

    better = METRICS[metric]
    title = f"{metric_title(metric)} on test rows ({better} is better)"
    return {
        "quality": bars(
            title, lambda m: (m["quality"][metric]["figure"], _ends(m["quality"][metric])), _METRIC_DIGITS
        ),
        "difference": _difference(result),
        "parameters": bars(
            "Trained parameters without the head, thousands",
            lambda m: (m["trainable_parameters"] / 1000, None),
        ),
        "artefact": bars("Artefact on disk, kB", lambda m: (m["artefact_bytes"] / 1000, None)),
        "seconds": bars("Training time, seconds", seconds),
        "memory": bars("Peak memory of the training process, MB", lambda m: (m["peak_bytes"] / 1e6, None), 0),
        "latency": bars("Latency, milliseconds a row", spread, 2),
    }


def _difference(result: Mapping[str, Any]) -> tuple[str, Callable[[plots.Theme], Any]]:
    metric = result["metric"]
    title = f"{metric_title(metric)}: better (right) or worse (left) than the prefix"
    drawn = tuple(
        plots.Bar(_system(method), difference["figure"], *(_ends(difference) or (None, None)))
        for method in result["methods"]
        if method["difference"] is not None
        for difference in [method["difference"][metric]]
        if difference["figure"] is not None
    )
    return title, lambda theme: plots.difference_figure(
        plots.MetricBars("difference", title, drawn, _METRIC_DIGITS), theme
    )


def _system(method: Mapping[str, Any]) -> str:
    return "prefix" if method["method"] == "prefix" else str(method["title"])


def _ends(found: Mapping[str, Any]) -> tuple[float, float] | None:
    """The interval that is shown: over seeds where there are several, else over rows."""
    ends = found["over_seeds"] or found["over_rows"]
    return None if ends is None else (ends[0], ends[1])


def _interval(found: Mapping[str, Any], metric: str, *, signed: bool = False) -> list[str]:
    ends = _ends(found)
    if ends is None:
        return []
    low, high = (metric_number(metric, end, signed=signed) for end in ends)
    return [f"{low} to {high}"]


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
