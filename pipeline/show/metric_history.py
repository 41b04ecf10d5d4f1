"""A metric of all versions over time: places of points, intervals and floors in a picture of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.params import METRICS
from pipeline.show.axis import number_axis, number_ticks, time_axis, time_ticks, utc
from pipeline.show.report_analysis import metric_number, metric_title

WIDTH, HEIGHT = 400, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 20, 18, 28
_LABELLED = 12
"""Up to this many versions carry their number in the picture."""


def metric_histories(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A picture for each metric that a version's prefix has.

    Args:
        found: versions, as `pipeline.audit.prefix_audit.audit` gives them.

    Returns:
        [{metric, name, better, width, height, left, right, floor, points: [{x, y, low, high, text, title, version,
        stage}], floors: [path], base: path, newest, ticks_x, ticks_y}], places in pixels
    """
    records = [
        (version, time, version["record"])
        for version in found
        if version["record"] is not None and (time := utc(version["record"]["created"])) is not None
    ]
    records.sort(key=lambda each: (each[1], int(each[0]["version"])))
    names = dict.fromkeys(
        name
        for _, _, record in records
        for name, value in record["metrics"].get("prefix", {}).items()
        if _number(value) is not None
    )
    return [_picture(name, records) for name in names]


def _picture(metric: str, records: Sequence[tuple[Any, Any, Any]]) -> dict[str, Any]:
    times = [time for _, time, _ in records]
    across = time_axis(times, _LEFT + 12, WIDTH - _RIGHT)
    raw = [
        {
            "version": version["version"],
            "stage": (version["stages"] or [""])[0],
            "x": across(time.timestamp()),
            "value": _number(record["metrics"].get("prefix", {}).get(metric)),
            "base": _number(record["metrics"].get("base", {}).get(metric)),
            **_judged(metric, record["verdict"]),
        }
        for version, time, record in records
    ]
    every = [
        number
        for point in raw
        for number in (point["value"], point["base"], point["threshold"], *(point["interval"] or ()))
        if number is not None
    ]
    up = number_axis(every, HEIGHT - _BOTTOM, _TOP)
    points = [point for point in raw if point["value"] is not None]
    labelled = len(points) <= _LABELLED
    return {
        "metric": metric,
        "name": metric_title(metric),
        "better": METRICS.get(metric, "higher"),
        "width": WIDTH,
        "height": HEIGHT,
        "left": _LEFT,
        "right": WIDTH - _RIGHT,
        "floor": HEIGHT - _BOTTOM,
        "radius": 4.5 if labelled else 3,
        "points": [
            {
                "x": point["x"],
                "y": up(point["value"]),
                "low": None if point["interval"] is None else up(point["interval"][0]),
                "high": None if point["interval"] is None else up(point["interval"][1]),
                "text": point["version"] if labelled and _room(points, number) else "",
                "title": _title(metric, point),
                "version": point["version"],
                "stage": point["stage"],
            }
            for number, point in enumerate(points)
        ],
        "floors": _floors(raw, up),
        "base": _line([(point["x"], up(point["base"])) for point in raw if point["base"] is not None]),
        "newest": metric_number(metric, points[-1]["value"]),
        "ticks_x": [{"x": x, "text": text} for x, text in time_ticks(across, 4)],
        "ticks_y": [{"y": y, "text": text} for y, text in number_ticks(up)],
    }


def _judged(metric: str, verdict: Mapping[str, Any]) -> dict[str, Any]:
    """The floor that the metric had to reach over all rows, and the interval that was found of it."""
    for one in verdict.get("criteria", ()):
        if one["kind"] == "floor" and one["metric"] == metric and one["slice"] is None:
            return {"threshold": _number(one["threshold"]), "interval": one["interval"]}
    return {"threshold": None, "interval": None}


def _floors(raw: Sequence[Mapping[str, Any]], up: Any) -> list[str]:
    """A level stretch from each version that had a floor to the next version, joined where floors are equal."""
    paths: list[list[float]] = []
    for number, point in enumerate(raw):
        if point["threshold"] is None:
            continue
        following = raw[number + 1]["x"] if number + 1 < len(raw) else WIDTH - _RIGHT + 8
        y = up(point["threshold"])
        before = raw[number - 1]["threshold"] if number else None
        if paths and before == point["threshold"]:
            paths[-1][1] = following
        else:
            paths.append([point["x"] - (8 if number == 0 else 0), following, y])
    return [f"M{start:g} {y:g}H{end:g}" for start, end, y in paths]


def _line(points: Sequence[tuple[float, float]]) -> str:
    return "" if len(points) < 2 else "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


def _room(points: Sequence[Mapping[str, Any]], number: int) -> bool:
    """Whether the next point leaves room for the number of this one."""
    return number + 1 == len(points) or points[number + 1]["x"] - points[number]["x"] > 14


def _title(metric: str, point: Mapping[str, Any]) -> str:
    said = f"Version {point['version']}: {metric_number(metric, point['value'])}"
    if point["interval"] is not None:
        said += " ({} to {})".format(*(metric_number(metric, end) for end in point["interval"]))
    if point["threshold"] is not None:
        said += f", floor {metric_number(metric, point['threshold'])}"
    return said


def _number(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None
