"""Round marks along the axes of hand-drawn pictures."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.show.axis import Axis, number_axis, number_ticks, time_axis, time_ticks, utc

START = datetime(2025, 3, 3, 9, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0.69, 0.81, ["0.70", "0.75", "0.80"]),
        (-0.03, 0.02, ["−0.03", "−0.02", "−0.01", "0.00", "0.01", "0.02"]),
        (0, 3400, ["0", "1,000", "2,000", "3,000"]),
    ],
)
def test_numbers_are_marked_at_round_values_with_the_digits_they_need(
    low: float, high: float, texts: list[str]
) -> None:
    axis = Axis(low, high, 100, 0)
    ticks = number_ticks(axis)
    assert [text for _, text in ticks] == texts
    for x, text in ticks:
        assert x == axis(float(text.replace("−", "-").replace(",", "")))


@pytest.mark.parametrize(
    ("length", "first", "last"),
    [
        (timedelta(seconds=20), "3 Mar 09:12:00", "09:12:20"),
        (timedelta(hours=5), "3 Mar 10:00", "14:00"),
        (timedelta(days=3), "3 Mar 12:00", "6 Mar 00:00"),
        (timedelta(days=20), "10 Mar", "17 Mar"),
        (timedelta(days=300), "May 2025", "Nov 2025"),
        (timedelta(days=4000), "2026", "2036"),
    ],
)
def test_times_are_marked_by_the_minute_the_day_the_monday_or_the_month(
    length: timedelta, first: str, last: str
) -> None:
    texts = [text for _, text in time_ticks(time_axis([START, START + length], 0, 900))]
    assert (texts[0], texts[-1]) == (first, last)
    assert 2 <= len(texts) <= 8


@given(st.lists(st.datetimes(timezones=st.just(UTC)), min_size=1, max_size=5))
def test_every_mark_of_any_stretch_of_time_lies_on_the_axis_in_order(times: list[datetime]) -> None:
    axis = time_axis(times, 10, 900)
    places = [x for x, _ in time_ticks(axis)]
    assert places == sorted(places)
    assert all(10 <= x <= 900 for x in places)
    assert len(places) <= 12


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=5))
def test_every_number_lies_within_its_axis_with_a_few_marks(values: list[float]) -> None:
    axis = number_axis(values, 0, 100)
    assert all(0 <= axis(value) <= 100 for value in values)
    assert 1 <= len(number_ticks(axis)) <= 7


def test_a_time_without_an_offset_is_utc_and_what_is_no_time_is_none():
    assert utc("2025-03-03T09:12:00") == START
    assert utc("2025-03-03T11:12:00+02:00") == START
    assert utc("yesterday") is None
