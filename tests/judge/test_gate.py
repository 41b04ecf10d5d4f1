"""The gate: what passes, what fails, and that it fails closed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.judge.gate import MINIMUM_ROWS, Verdict, estimates, judge
from pipeline.params import METRICS, TASK_METRICS, EvaluationParams, GateParams
from tests import scored_rows

ROWS = 120


def _judge(rows: pa.Table | Path, task: Any = "classification", **gate: Any) -> Verdict:
    return judge(rows, GateParams.model_validate({"resamples": 300, **gate}), task, EvaluationParams())


def _answers(rows: int, right: int, *, of: int = 3, start: int = 0) -> list[int]:
    """Predictions for labels i % `of`, of which `right` are right, counting from `start`."""
    return [(i % of) if (i - start) % rows < right else (i + 1) % of for i in range(rows)]


LABELS = [i % 3 for i in range(ROWS)]


def _systems(**right: int) -> pa.Table:
    return scored_rows.classification(LABELS, {name: _answers(ROWS, n) for name, n in right.items()})


def _only(verdict: Verdict) -> Any:
    (criterion,) = verdict.criteria
    return criterion


@pytest.mark.parametrize(("floor", "passed"), [(0.75, True), (0.7499, True), (0.7501, False)])
def test_a_floor_is_met_at_or_above_it(floor: float, passed: bool) -> None:
    verdict = _judge(_systems(prefix=90), floors={"accuracy": floor})
    criterion = _only(verdict)
    assert (verdict.passed, criterion.passed, criterion.kind) == (passed, passed, "floor")
    assert (criterion.figure, criterion.threshold, criterion.rows, criterion.slice) == (
        0.75,
        floor,
        ROWS,
        None,
    )
    low, high = criterion.interval
    assert low < 0.75 < high
    assert f"accuracy is 0.75 on 120 rows (95 % interval {low:.4g} to {high:.4g})" in criterion.reason
    assert ("at or above" if passed else "below the floor") in criterion.reason


@pytest.mark.parametrize(("ceiling", "passed"), [(0.3, True), (0.2, False)])
def test_a_floor_is_a_ceiling_where_lower_is_better(ceiling: float, passed: bool) -> None:
    verdict = _judge(_systems(prefix=ROWS), floors={"loss": ceiling})
    assert verdict.passed is passed
    assert _only(verdict).figure == pytest.approx(-np.log(0.8))
    assert ("at or below the ceiling" if passed else "above the ceiling") in _only(verdict).reason


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "loss"])
def test_clearly_better_than_the_base_passes_whichever_way_the_metric_points(metric: str) -> None:
    wanted = {"better_than_base": {"metric": metric}}
    better = _judge(_systems(prefix=110, base=60), **wanted)
    assert better.passed
    assert _only(better).figure > 0
    assert _only(better).interval[0] > 0
    assert (_only(better).ours > _only(better).theirs) is (METRICS[metric] == "higher")
    worse = _judge(_systems(prefix=60, base=110), **wanted)
    assert not worse.passed
    assert _only(worse).figure == pytest.approx(-_only(better).figure)
    assert "worse" in _only(worse).reason


def test_better_by_chance_is_not_better() -> None:
    verdict = _judge(_systems(prefix=61, base=60), better_than_base={"metric": "accuracy"})
    assert _only(verdict).figure > 0
    assert not verdict.passed  # the interval reaches 0


def test_a_slightly_worse_prefix_is_not_worse_than_the_champion_within_the_margin_only() -> None:
    rows = _systems(prefix=98, champion=100)
    for margin, passed in ((0.0, False), (0.005, False), (0.1, True)):
        verdict = _judge(rows, not_worse_than_champion={"metric": "accuracy", "margin": margin})
        assert verdict.passed is passed
        assert _only(verdict).threshold == -margin


def test_without_a_champion_the_comparison_is_listed_and_passes() -> None:
    verdict = _judge(_systems(prefix=100), not_worse_than_champion={"metric": "accuracy"})
    assert verdict.passed
    assert _only(verdict).reason == "there is no version in production yet"
    assert (_only(verdict).rows, _only(verdict).figure) == (0, None)


def test_a_champion_that_was_to_be_scored_but_has_no_rows_fails() -> None:
    rows = scored_rows.classification(LABELS, {"prefix": LABELS}, expected=["prefix", "base", "champion"])
    verdict = _judge(rows, not_worse_than_champion={"metric": "accuracy"})
    assert not verdict.passed
    assert "on 0 common test rows" in _only(verdict).reason


def test_a_base_that_was_not_scored_fails() -> None:
    verdict = _judge(_systems(prefix=100), better_than_base={"metric": "accuracy"})
    assert not verdict.passed
    assert "the frozen base was not scored" in _only(verdict).reason


def test_a_gate_without_criteria_lets_nothing_through() -> None:
    verdict = _judge(_systems(prefix=ROWS))
    assert not verdict.passed
    assert verdict.reasons == ("the gate has no criteria: name at least one under `gate` in params.yaml",)


@pytest.mark.parametrize("kind", ["floor", "better_than_base", "not_worse_than_champion"])
@pytest.mark.parametrize(("rows", "passed"), [(MINIMUM_ROWS - 1, False), (MINIMUM_ROWS, True)])
def test_too_few_rows_fail(kind: str, rows: int, passed: bool) -> None:
    wrong = [(label + 1) % 3 for label in LABELS[:rows]]
    table = scored_rows.classification(
        LABELS[:rows], {"prefix": LABELS[:rows], "base": wrong, "champion": wrong}
    )
    gate = {"floors": {"accuracy": 0.5}} if kind == "floor" else {kind: {"metric": "accuracy"}}
    verdict = _judge(table, **gate)
    assert verdict.passed is passed
    assert _only(verdict).rows == rows
    assert passed or f"{rows}" in _only(verdict).reason


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("system", ["prefix", "base", "champion"])
def test_a_figure_that_is_not_a_number_fails(bad: float, system: str) -> None:
    rows = _systems(prefix=ROWS, base=40, champion=40)
    loss = rows["loss"].to_pylist()
    loss[rows["system"].to_pylist().index(system) + 3] = bad
    rows = rows.set_column(rows.column_names.index("loss"), rows.schema.field("loss"), pa.array(loss))
    verdict = _judge(
        rows,
        floors={"loss": 9},
        better_than_base={"metric": "loss"},
        not_worse_than_champion={"metric": "loss", "margin": 9},
    )
    failed = {criterion.kind for criterion in verdict.criteria if not criterion.passed}
    assert (
        failed
        == {
            "prefix": {"floor", "better_than_base", "not_worse_than_champion"},
            "base": {"better_than_base"},
            "champion": {"not_worse_than_champion"},
        }[system]
    )
    assert all("not a finite number" in reason for reason in verdict.reasons)
    json.dumps(verdict.to_json(), allow_nan=False)


def test_a_comparison_uses_only_the_rows_both_systems_were_scored_on() -> None:
    rows = _systems(prefix=90, base=60, champion=90)
    keep = [not (system == "champion" and i % 2) for i, system in enumerate(rows["system"].to_pylist())]
    verdict = _judge(
        rows.filter(pa.array(keep)),
        better_than_base={"metric": "accuracy"},
        not_worse_than_champion={"metric": "accuracy"},
    )
    assert [criterion.rows for criterion in verdict.criteria] == [ROWS, ROWS // 2]
    assert verdict.criteria[1].ours == verdict.criteria[1].theirs  # the same answers on the common rows


def test_every_large_slice_is_judged_and_small_ones_are_not() -> None:
    # Wrong only in the last 30 rows, all of which are in slice c.
    area = ["a"] * 60 + ["b"] * 30 + ["c"] * 30
    rows = scored_rows.classification(
        LABELS, {"prefix": _answers(ROWS, 90), "champion": _answers(ROWS, 90)}, slices={"area": area}
    )
    wanted = {
        "column": "area",
        "floors": {"accuracy": 0.9},
        "not_worse_than_champion": {"metric": "accuracy"},
    }
    verdict = _judge(rows, slices=[wanted])
    found = {(criterion.kind, criterion.slice): criterion.passed for criterion in verdict.criteria}
    assert found == {
        ("floor", "area=a"): True,
        ("floor", "area=b"): True,
        ("floor", "area=c"): False,
        **{("not_worse_than_champion", f"area={value}"): True for value in "abc"},
    }
    assert not verdict.passed
    assert "where area=c is 0 on 30 rows" in verdict.reasons[0]
    larger = _judge(rows, slices=[{**wanted, "min_rows": 31}])
    assert {criterion.slice for criterion in larger.criteria} == {"area=a"}
    assert larger.passed


def test_slices_of_which_none_is_large_enough_fail() -> None:
    rows = scored_rows.classification(LABELS, {"prefix": LABELS}, slices={"area": [str(i) for i in LABELS]})
    wanted = {"column": "area", "min_rows": 41, "floors": {"accuracy": 0}}
    wanted["not_worse_than_champion"] = {"metric": "accuracy"}
    verdict = _judge(rows, slices=[wanted])
    assert [(criterion.passed, criterion.slice) for criterion in verdict.criteria] == [(False, "area=*")] * 2
    assert "the largest has 40" in verdict.reasons[0]


def test_slices_without_a_champion_list_the_comparison_once() -> None:
    rows = scored_rows.classification(LABELS, {"prefix": LABELS}, slices={"area": [str(i) for i in LABELS]})
    verdict = _judge(rows, slices=[{"column": "area", "not_worse_than_champion": {"metric": "accuracy"}}])
    assert verdict.passed
    assert _only(verdict).slice == "area=*"


def test_a_slice_column_that_the_rows_lack_is_an_error() -> None:
    with pytest.raises(DataError, match=r"slice\.area: no such column in the scored rows; available: none"):
        _judge(_systems(prefix=90), slices=[{"column": "area"}])


def test_texts_are_judged_by_every_metric_of_generation() -> None:
    references = [[f"the pub is near the river {i}", "a cheap pub"] for i in range(40)]
    good = [f"the pub is near the river {i}" for i in range(40)]
    bad = ["the pub is a red dog near it" for _ in range(40)]
    rows = scored_rows.generation(
        references, {"prefix": good, "base": bad}, nll={"prefix": [5.0] * 40, "base": [9.0] * 40}
    )
    for metric in TASK_METRICS["generation"]:
        verdict = _judge(rows, "generation", better_than_base={"metric": metric})
        assert verdict.passed, metric
        assert _only(verdict).rows == 40
    verdict = _judge(rows, "generation", floors={"bleu": 99, "rouge_l": 0.99, "loss": 1.0, "perplexity": 2.8})
    assert verdict.passed, verdict.reasons


def test_rows_without_a_generated_text_count_for_the_loss_and_not_for_the_texts() -> None:
    references = [["a cheap pub is near the river"]] * 40
    texts = [references[0][0] if i % 2 else None for i in range(40)]
    verdict = _judge(
        scored_rows.generation(references, {"prefix": texts}), "generation", floors={"loss": 2, "bleu": 99}
    )
    assert {criterion.metric: criterion.rows for criterion in verdict.criteria} == {"loss": 40, "bleu": 20}
    assert verdict.passed


ANSWERS = st.lists(st.integers(-1, 2), min_size=40, max_size=40)


@settings(max_examples=25, deadline=None)
@given(ANSWERS, st.sampled_from(TASK_METRICS["classification"]), st.integers(0, 2**32 - 1))
def test_identical_systems_are_never_better_and_never_worse(
    answers: list[int], metric: str, seed: int
) -> None:
    confidence = float(np.random.default_rng(seed).uniform(0.3, 0.9))
    rows = scored_rows.classification(
        LABELS[:40], {"prefix": answers, "base": answers, "champion": answers}, confidence=confidence
    )
    gate = {"better_than_base": {"metric": metric}, "not_worse_than_champion": {"metric": metric}}
    verdict = _judge(rows, resamples=100, **gate)
    assert [criterion.passed for criterion in verdict.criteria] == [False, True]
    assert [criterion.interval for criterion in verdict.criteria] == [(0, 0), (0, 0)]


@settings(max_examples=25, deadline=None)
@given(ANSWERS, ANSWERS, st.floats(0, 1), st.floats(0, 1))
def test_a_larger_margin_is_harder_for_better_and_easier_for_not_worse(
    ours: list[int], theirs: list[int], one: float, other: float
) -> None:
    rows = scored_rows.classification(LABELS[:40], {"prefix": ours, "base": theirs, "champion": theirs})
    small, large = (
        _judge(
            rows,
            resamples=100,
            better_than_base={"metric": "accuracy", "margin": margin},
            not_worse_than_champion={"metric": "accuracy", "margin": margin},
        ).criteria
        for margin in sorted((one, other))
    )
    assert small[0].passed or not large[0].passed
    assert large[1].passed or not small[1].passed


@settings(max_examples=15, deadline=None)
@given(ANSWERS, ANSWERS, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(ours: list[int], theirs: list[int], random: Any) -> None:
    rows = scored_rows.classification(LABELS[:40], {"prefix": ours, "base": theirs, "champion": theirs})
    order = list(range(len(rows)))
    random.shuffle(order)
    gate = {
        "resamples": 100,
        "floors": {"macro_f1": 0.5},
        "better_than_base": {"metric": "loss"},
        "not_worse_than_champion": {"metric": "calibration_error"},
    }
    assert _judge(rows.take(order), **gate) == _judge(rows, **gate)


def test_a_better_answer_never_lowers_the_interval() -> None:
    lows = [
        _judge(_systems(prefix=right, base=60), better_than_base={"metric": "accuracy"})
        .criteria[0]
        .interval[0]
        for right in range(50, 121, 10)
    ]
    assert lows == sorted(lows)


def test_a_file_and_a_table_give_the_same_verdict(tmp_path: Path) -> None:
    rows = _systems(prefix=90, base=60)
    pq.write_table(rows, tmp_path / "rows.parquet")
    gate = {"better_than_base": {"metric": "macro_f1"}}
    assert _judge(tmp_path / "rows.parquet", **gate) == _judge(rows, **gate)


def test_higher_confidence_gives_a_wider_interval() -> None:
    rows = _systems(prefix=70, base=60)
    low, high = (
        _only(_judge(rows, confidence=confidence, better_than_base={"metric": "accuracy"})).interval
        for confidence in (0.8, 0.99)
    )
    assert high[0] < low[0] < low[1] < high[1]


def test_estimates_give_every_metric_of_every_system_with_its_interval() -> None:
    rows = _systems(prefix=90, base=60)
    found = estimates(rows, GateParams(resamples=200), "classification", EvaluationParams())
    assert {system: tuple(figures) for system, figures in found.items()} == dict.fromkeys(
        ("prefix", "base"), TASK_METRICS["classification"]
    )
    assert found["base"]["accuracy"].figure == 0.5
    low, high = found["base"]["accuracy"].interval or (0, 0)
    assert low < 0.5 < high


def test_estimates_of_what_was_not_scored_are_none() -> None:
    rows = scored_rows.generation([["a pub"]] * 20, {"prefix": [None] * 20})
    found = estimates(rows, GateParams(resamples=100), "generation", EvaluationParams())["prefix"]
    assert (found["bleu"].figure, found["bleu"].interval, found["bleu"].rows) == (None, None, 0)
    assert found["loss"].figure == 2.0
