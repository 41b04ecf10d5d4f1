"""Axes of hand-drawn pictures: where a number or a time lies, and round marks along the way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400
_STEPS = (
    1, 5, 15, 30, _MINUTE, 5 * _MINUTE, 15 * _MINUTE, 30 * _MINUTE, _HOUR, 3 * _HOUR, 6 * _HOUR, 12 * _HOUR,
    _DAY, 2 * _DAY, 7 * _DAY, 14 * _DAY,
)  # fmt: skip
"""Seconds between two marks of a time axis; above them months."""
_MONTHS = (1, 2, 3, 6, 12, 24, 60, 120, 240, 600, 1200, 2400, 12000)


@dataclass(frozen=True)
class Axis:
    """A stretch of numbers laid over a stretch of pixels.

    Attributes:
        low, high: the numbers at its ends; times are seconds since 1970.
        start, end: the pixels there.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a number."""
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return round(self.start + share * (self.end - self.start), 1)


def time_axis(times: Sequence[datetime], start: float, end: float) -> Axis:
    """An axis from the first to the last of `times`, at least a second long."""
    seconds = [time.timestamp() for time in times] or [0.0]
    low, high = min(seconds), max(seconds)
    return Axis(low, high, start, end) if high - low >= 1 else Axis(low - 0.5, low + 0.5, start, end)


def number_axis(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis over `values` with some room at both ends."""
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.08 * abs(high) or 1.0
    return Axis(low - room, high + room, start, end)


def number_ticks(axis: Axis, most: int = 5) -> list[tuple[float, str]]:
    """At most `most` (or one more) round numbers along the axis: [(pixel, text)]."""
    rough = (axis.high - axis.low) / most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
    first, last = math.ceil(axis.low / step - 1e-9), math.floor(axis.high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [
        (axis(number * step), f"{number * step:,.{digits}f}".replace("-", "\u2212"))
        for number in range(first, last + 1)
    ]


def time_ticks(axis: Axis, most: int = 7) -> list[tuple[float, str]]:
    """At most `most` round times along the axis, in UTC: [(pixel, text)]."""
    span = axis.high - axis.low
    for step in _STEPS:
        if span / step <= most:
            return _even(axis, step)
    months = next((many for many in _MONTHS if span / (many * 30.4 * _DAY) <= most), _MONTHS[-1])
    return _monthly(axis, months)


def utc(text: str) -> datetime | None:
    """An ISO 8601 time, in UTC where it has no offset; None where it is no such time."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _even(axis: Axis, step: int) -> list[tuple[float, str]]:
    # Marks of several days are counted from a Monday.
    origin = 4 * _DAY if step > _DAY else 0
    first = math.ceil((axis.low - origin) / step)
    last = math.floor((axis.high - origin) / step)
    marks, day = [], None
    for number in range(first, last + 1):
        time = datetime.fromtimestamp(number * step + origin, UTC)
        date = f"{time.day} {time:%b}"
        if step >= _DAY:
            text = date
        else:
            clock = f"{time:%H:%M:%S}" if step < _MINUTE else f"{time:%H:%M}"
            text = clock if day == time.date() else f"{date} {clock}"
        marks.append((axis(time.timestamp()), text))
        day = time.date()
    return marks


def _monthly(axis: Axis, months: int) -> list[tuple[float, str]]:
    start = datetime.fromtimestamp(axis.low, UTC)
    # Counted from January, so that a mark of three months is a quarter.
    month = -(-(start.year * 12 + start.month - 1) // months) * months
    marks: list[tuple[float, str]] = []
    while True:
        year, number = divmod(month, 12)
        if year > 9999:
            return marks
        time = datetime(max(year, 1), number + 1, 1, tzinfo=UTC)
        seconds = (time - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(seconds=1)
        if seconds > axis.high:
            return marks
        if seconds >= axis.low:
            marks.append((axis(seconds), f"{time.year}" if months >= 12 else f"{time:%b} {time.year}"))
        month += months
