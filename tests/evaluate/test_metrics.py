"""Every metric against the library that papers use for it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluate import metrics
from pipeline.params import METRICS, TASK_METRICS

WORDS = st.sampled_from(["the", "Eagle", "pub", "is", "cheap,", "near", "river.", "a", "b", "café", "£20"])
TEXT = st.lists(WORDS, max_size=12).map(" ".join)
CORPUS = st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=3)), min_size=1, max_size=6)


def _classified(rows: int = 400, classes: int = 7, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    label = generator.integers(0, classes, rows)
    right = generator.random(rows) < 0.6
    prediction = np.where(right, label, generator.integers(0, classes, rows))
    confidence = generator.uniform(1 / classes, 1, rows)
    return {
        "label": label,
        "prediction": prediction,
        "confidence": confidence,
        "loss": generator.exponential(1, rows),
    }


def _generated(corpus: list[tuple[str, list[str]]]) -> dict[str, np.ndarray]:
    scores = [metrics.score_hypothesis(hypothesis, references) for hypothesis, references in corpus]
    return {name: np.asarray([getattr(score, name) for score in scores]) for name in vars(scores[0])}


def _streams(corpus: list[tuple[str, list[str]]]) -> list[list[str | None]]:
    """References the way sacrebleu wants them: one stream per position, None where a row has fewer."""
    most = max(len(references) for _, references in corpus)
    return [[refs[k] if k < len(refs) else None for _, refs in corpus] for k in range(most)]


def test_every_metric_that_a_gate_may_name_has_its_columns() -> None:
    assert {task: tuple(columns) for task, columns in metrics.COLUMNS.items()} == dict(TASK_METRICS)
    assert {metric for columns in metrics.COLUMNS.values() for metric in columns} == set(METRICS)


@pytest.mark.parametrize("seed", range(3))
def test_accuracy_and_macro_f1_equal_scikit_learns(seed: int) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    rows = _classified(seed=seed)
    for draw in range(3):
        weights = np.bincount(np.random.default_rng(draw).integers(0, 400, 400), minlength=400).astype(float)
        drawn = np.repeat(np.arange(400), weights.astype(int))
        label, prediction = rows["label"][drawn], rows["prediction"][drawn]
        got = metrics.statistic("accuracy", "classification", rows)(weights[None])[0]
        assert got == pytest.approx(accuracy_score(label, prediction), abs=1e-12)
        got = metrics.statistic("macro_f1", "classification", rows)(weights[None])[0]
        expected = f1_score(label, prediction, labels=np.unique(label), average="macro", zero_division=0)
        assert got == pytest.approx(expected, abs=1e-12)


def test_macro_f1_averages_over_the_labels_that_occur_and_a_strange_prediction_is_wrong() -> None:
    rows = {"label": np.array([0, 0, 2, 2]), "prediction": np.array([0, 1, 2, metrics.UNKNOWN_LABEL])}
    # F1 is 2·1/(2+1) for both labels that occur; label 1, only predicted, does not enter the mean.
    assert metrics.figure("macro_f1", "classification", rows) == pytest.approx(2 / 3)


def test_calibration_error_is_the_papers() -> None:
    rows = _classified()
    right = rows["label"] == rows["prediction"]
    expected = 0.0
    for k in range(15):
        inside = (rows["confidence"] > k / 15) & (rows["confidence"] <= (k + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - rows["confidence"][inside].mean())
    assert metrics.figure("calibration_error", "classification", rows) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("confidence", "right", "expected"), [(1.0, True, 0.0), (1.0, False, 1.0), (0.5, True, 0.5)]
)
def test_calibration_error_of_one_row_is_the_gap_between_confidence_and_truth(
    confidence: float, right: bool, expected: float
) -> None:
    rows = {
        "label": np.array([1]),
        "prediction": np.array([int(right)]),
        "confidence": np.array([confidence]),
    }
    assert metrics.figure("calibration_error", "classification", rows) == pytest.approx(expected)


def test_per_class_figures_equal_scikit_learns() -> None:
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    rows = _classified(rows=60, classes=9)
    names = [f"label {i}" for i in range(9)]
    confusion = metrics.confusion_matrix(rows["label"], rows["prediction"], 9)
    assert (
        confusion[:, :9].tolist()
        == confusion_matrix(rows["label"], rows["prediction"], labels=range(9)).tolist()
    )
    assert not confusion[:, 9].any()
    expected = precision_recall_fscore_support(
        rows["label"], rows["prediction"], labels=range(9), zero_division=0
    )
    got = metrics.per_class(confusion, names)
    for i, name in enumerate(names):
        assert [*got[name].values()] == pytest.approx([column[i] for column in expected])


def test_a_confusion_matrix_counts_predictions_of_no_known_label_in_its_last_column() -> None:
    confusion = metrics.confusion_matrix(np.array([0, 1, 1]), np.array([0, -1, 0]), 2)
    assert confusion.tolist() == [[1, 0, 0], [1, 0, 1]]
    assert metrics.per_class(confusion, ["a", "b"])["b"] == {
        "precision": 0,
        "recall": 0,
        "f1": 0,
        "support": 2,
    }


def test_losses_are_a_mean_over_rows_or_over_target_tokens() -> None:
    assert metrics.figure("loss", "classification", {"loss": np.array([1.0, 3.0])}) == 2.0
    rows = {"nll": np.array([2.0, 4.0]), "target_tokens": np.array([1, 5])}
    assert metrics.figure("loss", "generation", rows) == 1.0
    assert metrics.figure("perplexity", "generation", rows) == pytest.approx(np.e)


def test_no_rows_have_no_figure() -> None:
    for task, columns in metrics.COLUMNS.items():
        for metric, names in columns.items():
            wide = {"bleu_counts": 4, "bleu_totals": 4, "chrf_statistics": 18}
            empty = {name: np.zeros((0, wide[name]) if name in wide else 0) for name in names}
            assert np.isnan(metrics.figure(metric, task, empty)), metric


@settings(max_examples=60, deadline=None)
@given(CORPUS)
def test_bleu_and_chrf_equal_sacrebleus_corpus_figures(corpus: list[tuple[str, list[str]]]) -> None:
    from sacrebleu.metrics import BLEU, CHRF

    hypotheses = [hypothesis for hypothesis, _ in corpus]
    rows = _generated(corpus)
    expected = BLEU().corpus_score(hypotheses, _streams(corpus)).score
    assert metrics.figure("bleu", "generation", rows) == pytest.approx(expected, abs=1e-9)
    # sacrebleu drops an empty reference from the streams as if it were not there, so chrF is compared without them.
    if all(reference for _, references in corpus for reference in references):
        expected = CHRF().corpus_score(hypotheses, _streams(corpus)).score
        assert metrics.figure("chrf", "generation", rows) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(TEXT, st.lists(TEXT.filter(bool), min_size=1, max_size=3))
def test_a_sentences_chrf_and_rouge_equal_the_libraries(hypothesis: str, references: list[str]) -> None:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import CHRF

    scores = metrics.score_hypothesis(hypothesis, references)
    assert scores.chrf == pytest.approx(CHRF().sentence_score(hypothesis, references).score, abs=1e-9)
    scorer = RougeScorer(["rougeL"])
    best = max(scorer.score(reference, hypothesis)["rougeL"].fmeasure for reference in references)
    assert scores.rouge_l == pytest.approx(best)


def test_the_figures_of_a_resample_are_those_of_the_rows_drawn() -> None:
    corpus = [
        ("the pub is cheap", ["the pub is near the river", "a cheap pub"]),
        ("a b a b", ["the river"]),
        ("Eagle is near", ["the Eagle is near the river"]),
    ]
    rows = _generated(corpus)
    again = _generated([corpus[0], corpus[0], corpus[2]])
    for metric in ("bleu", "chrf", "rouge_l"):
        drawn = metrics.statistic(metric, "generation", rows)(np.array([[2.0, 0.0, 1.0]]))[0]
        assert drawn == pytest.approx(metrics.figure(metric, "generation", again)), metric
