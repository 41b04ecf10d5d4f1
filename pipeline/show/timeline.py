"""Which version held which stage when, and what happened: places in a picture with a real time axis.

What lies too close to be told apart is drawn as one and counted, so that a thousand events stay readable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any

from pipeline.ledger.events import STAGES
from pipeline.show.axis import Axis, time_axis, time_ticks, utc
from pipeline.show.report_view import spoken_time

WIDTH, _LEFT, _RIGHT = 1024, 112, 14
_LANE, _BAR, _ROW = 34, 22, 28
_TOP, _GAP, _AXIS = 26, 44, 30
_NARROW = 3.0
"""Pixels below which stretches that follow each other are drawn as one."""
_DOT = 18.0
"""Pixels between two dots."""
_SMALL, _LARGE = 5, 8.5
"""Radii of a dot for one event, and for several."""
_LETTER = 7.0


def timeline(
    held: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]], made: str
) -> dict[str, Any]:
    """The picture.

    Args:
        held, events, made: as `pipeline.audit.prefix_audit.audit` gives them.

    Returns:
        {width, height, headings: [{text, y}], lanes: [{name, y, height, spans: [{x, width, text, title, many}]}], rows: [{name, y, dots: [{x,
        radius, text, title, epoch}]}], ticks: [{x, text}], left, right, floor}, in pixels
    """
    times = _times(events)
    now = utc(made)
    axis = time_axis([*times.values(), *([] if now is None else [now])], _LEFT, WIDTH - _RIGHT)
    lanes, y = [], float(_TOP)
    for stage in STAGES:
        spans = [span for span in held if span["stage"] == stage]
        lanes.append({"name": stage, "y": y, "height": _BAR, "spans": _spans(spans, axis)})
        y += _LANE
    headings = [{"text": "Stages", "y": 14}, {"text": "Events", "y": y + 20}]
    y += _GAP
    rows = []
    for kind in dict.fromkeys(event["event"] for event in events):
        of_kind = [event for event in events if event["event"] == kind]
        rows.append({"name": kind, "y": y, "dots": _dots(of_kind, times, axis)})
        y += _ROW
    return {
        "width": WIDTH,
        "height": y + _AXIS - _ROW / 2,
        "left": _LEFT,
        "right": WIDTH - _RIGHT,
        "floor": y - _ROW / 2,
        "headings": headings,
        "lanes": lanes,
        "rows": rows,
        "ticks": [{"x": x, "text": text} for x, text in time_ticks(axis)],
    }


def _times(events: Sequence[Mapping[str, Any]]) -> dict[int, datetime]:
    """{epoch: when}; an event's time is checked when the ledger is read."""
    return {event["epoch"]: datetime.fromisoformat(event["time"]) for event in events}


def _spans(held: Sequence[Mapping[str, Any]], axis: Axis) -> list[dict[str, Any]]:
    drawn: list[dict[str, Any]] = []
    for span in held:
        start = axis(datetime.fromisoformat(span["since"]).timestamp())
        end = axis.end if span["until"] is None else axis(datetime.fromisoformat(span["until"]).timestamp())
        end = max(start, end)  # a clock may have been behind
        last = drawn[-1] if drawn else None
        if last is not None and end - start < _NARROW and start - last["end"] < _NARROW and last["narrow"]:
            last |= {"end": max(end, last["end"]), "many": last["many"] + 1, "until": span["until"]}
            continue
        drawn.append({"start": start, "end": end, "narrow": end - start < _NARROW, "many": 1, **span})
    return [
        {
            "x": span["start"],
            "width": max(1.5, round(span["end"] - span["start"] - 1, 1)),
            "many": span["many"] > 1,
            "text": _label(span),
            "title": _title(span),
        }
        for span in drawn
    ]


def _label(span: Mapping[str, Any]) -> str:
    """What there is room for within the bar."""
    text = f"{span['many']} versions" if span["many"] > 1 else str(span["version"])
    return text if len(text) * _LETTER + 6 < span["end"] - span["start"] else ""


def _title(span: Mapping[str, Any]) -> str:
    until = "now" if span["until"] is None else spoken_time(span["until"])
    who = (
        f"{span['many']} versions, one after the other," if span["many"] > 1 else f"Version {span['version']}"
    )
    return f"{who} in {span['stage']} from {spoken_time(span['since'])} to {until}"


def _dots(
    events: Sequence[Mapping[str, Any]], times: Mapping[int, datetime], axis: Axis
) -> list[dict[str, Any]]:
    placed = sorted(events, key=lambda event: (times[event["epoch"]], event["epoch"]))
    dots = []
    for place, group in groupby(
        placed, key=lambda event: int((axis(times[event["epoch"]].timestamp()) - axis.start) // _DOT)
    ):
        together = list(group)
        first, count = together[0], len(together)
        # Within its own stretch of the axis, so that it touches no other.
        left = axis.start + place * _DOT
        if count == 1:
            at = axis(times[first["epoch"]].timestamp())
            x = round(min(max(at, left + _SMALL), left + _DOT - _SMALL), 1)
            title = f"{spoken_time(first['time'])}: {first['sentence']}"
        else:
            x = left + _DOT / 2
            title = f"{count} events from {spoken_time(first['time'])} to {spoken_time(together[-1]['time'])}"
        dots.append(
            {
                "x": x,
                "radius": _SMALL if count == 1 else _LARGE,
                "text": "" if count == 1 else f"{count}" if count < 100 else "99+",
                "title": title,
                "epoch": first["epoch"],
            }
        )
    return dots
