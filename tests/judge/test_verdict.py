"""A verdict survives JSON, refuses to contradict itself, and reads as a table."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.judge.verdict import TABLE_HEADER, Criterion, Verdict, table

FINITE = st.floats(allow_nan=False, allow_infinity=False)
CRITERIA = st.builds(
    Criterion,
    kind=st.sampled_from(["floor", "better_than_base", "not_worse_than_champion"]),
    metric=st.sampled_from(["accuracy", "bleu"]),
    slice=st.none() | st.text(),
    figure=st.none() | FINITE,
    interval=st.none() | st.tuples(FINITE, FINITE),
    threshold=FINITE,
    passed=st.booleans(),
    reason=st.text(),
    rows=st.integers(0, 10**9),
    ours=st.none() | FINITE,
    theirs=st.none() | FINITE,
)


def _criterion(**changed: Any) -> Criterion:
    plain: dict[str, Any] = {
        "kind": "floor",
        "metric": "accuracy",
        "slice": None,
        "figure": 0.75,
        "interval": (0.7, 0.8),
        "threshold": 0.5,
        "passed": True,
        "reason": "accuracy is fine",
        "rows": 1200,
    }
    return Criterion(**{**plain, **changed})


@given(st.lists(CRITERIA, max_size=4))
def test_a_verdict_round_trips_through_json_text(criteria: list[Criterion]) -> None:
    verdict = Verdict.of(tuple(criteria))
    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json(), allow_nan=False))) == verdict
    assert Verdict.from_json(verdict.to_json()) == verdict


@given(st.lists(CRITERIA, max_size=4))
def test_a_verdict_passes_when_it_has_criteria_and_all_passed(criteria: list[Criterion]) -> None:
    verdict = Verdict.of(tuple(criteria))
    assert verdict.passed == (len(criteria) > 0 and all(criterion.passed for criterion in criteria))
    assert bool(verdict.reasons) == (not verdict.passed)
    with pytest.raises(ValueError, match=r"its .* criteria make it"):
        Verdict(not verdict.passed, verdict.criteria)


@pytest.mark.parametrize("field", ["figure", "threshold", "ours"])
def test_a_criterion_holds_only_finite_figures(field: str) -> None:
    with pytest.raises(ValueError, match="only finite figures"):
        _criterion(**{field: float("nan")})
    with pytest.raises(ValueError, match="only finite figures"):
        _criterion(interval=(0.0, float("inf")))


FAULTS: list[tuple[str, Any, str]] = [
    ("kind", "ceiling", "criteria.0: kind is 'ceiling'"),
    ("metric", 3, "metric is 3"),
    ("slice", 3, "slice is 3"),
    ("figure", "0.5", "figure is '0.5'"),
    ("figure", True, "figure is True"),
    ("interval", [0.1], "interval is"),
    ("interval", [0.1, None], "interval is"),
    ("threshold", None, "threshold is None"),
    ("threshold", float("nan"), "threshold is nan"),
    ("passed", 1, "passed is 1"),
    ("reason", None, "reason is None"),
    ("rows", -1, "rows is -1"),
    ("rows", True, "rows is True"),
]


@pytest.mark.parametrize(("field", "value", "message"), FAULTS, ids=[f"{f}={v}" for f, v, _ in FAULTS])
def test_a_wrong_field_is_named(field: str, value: Any, message: str) -> None:
    raw = Verdict.of((_criterion(),)).to_json()
    raw["criteria"][0][field] = value
    with pytest.raises(DataError, match="this is not a verdict") as caught:
        Verdict.from_json(raw)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [None, [], {}, {"passed": True}, {"passed": "yes", "criteria": []}, {"passed": True, "criteria": {}}],
)
def test_what_is_not_a_verdict_is_refused(raw: Any) -> None:
    with pytest.raises(DataError, match="this is not a verdict"):
        Verdict.from_json(raw)


def test_a_missing_or_unknown_key_of_a_criterion_is_refused() -> None:
    for change in ({"extra": 1}, {"reason": ...}):
        raw = Verdict.of((_criterion(),)).to_json()
        raw["criteria"][0] |= change
        if ... in change.values():
            del raw["criteria"][0]["reason"]
        with pytest.raises(DataError, match="expected the keys"):
            Verdict.from_json(raw)


def test_a_verdict_edited_to_pass_is_refused() -> None:
    raw = Verdict.of((_criterion(passed=False),)).to_json()
    raw["passed"] = True
    with pytest.raises(DataError, match="its 1 criteria make it False"):
        Verdict.from_json(raw)


def test_the_table_has_a_cell_for_every_column_and_signs_differences() -> None:
    compared = _criterion(
        kind="better_than_base", figure=0.1, interval=(-0.05, 0.2), threshold=0.0, passed=False
    )
    unseen = _criterion(kind="not_worse_than_champion", figure=None, interval=None, slice="area=*", rows=0)
    lines = table(Verdict.of((_criterion(), compared, unseen)))
    assert {len(line) for line in lines} == {len(TABLE_HEADER)}
    assert lines == [
        ("floor", "accuracy", "all rows", "0.75", "0.7 to 0.8", "0.5", "1,200", "passed"),
        ("better than base", "accuracy", "all rows", "+0.1", "-0.05 to +0.2", "0", "1,200", "FAILED"),
        ("not worse than champion", "accuracy", "area=*", "–", "–", "0.5", "0", "passed"),
    ]
