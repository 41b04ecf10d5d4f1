"""Every figure prefixline reports, each with one definition, used for whole sets, slices and resamples alike.

A figure is a function of rows with weights: a weight of 2 means that the row was drawn twice, so that the
bootstrap needs no second definition. `COLUMNS` says which columns a metric reads. N rows, R sets of weights,
C labels.

| metric | definition | scale |
|---|---|---|
| accuracy | share of rows whose prediction is the label | 0–1 |
| macro_f1 | mean of F1 = 2·TP / (2·TP + FP + FN) over the labels that occur among the rows | 0–1 |
| calibration_error | expected calibration error over equally wide bins (Guo et al. 2017, eq. 3) | 0–1 |
| loss | −ln p(label) per row; or the summed −ln p of all references per target token | nats |
| perplexity | exp(loss) | ≥ 1 |
| bleu | corpus BLEU of up to 4-grams against several references, as sacrebleu's default | 0–100 |
| chrf | corpus chrF2 of up to 6 characters against the best reference, as sacrebleu's default | 0–100 |
| rouge_l | mean over rows of the best reference's ROUGE-L F1, as rouge-score without stemming | 0–1 |

rouge-score reads Latin letters and digits only: for other scripts choose chrF.

Sources: Guo et al. 2017, On Calibration of Modern Neural Networks; Post 2018, A Call for Clarity in Reporting
BLEU Scores; Popović 2015, chrF; Lin 2004, ROUGE. The tests hold them against scikit-learn, sacrebleu and
rouge-score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.params import Task

Floats = NDArray[np.float64]
Columns = Mapping[str, NDArray[Any]]
"""Column name → N values (or N × K for lists), one per row."""
Statistic = Callable[[Floats], Floats]
"""Weights [R, N] → R figures; NaN where a figure is not defined."""

BLEU_ORDER = 4
CHRF_ORDER = 6
CHRF_BETA = 2
UNKNOWN_LABEL = -1
"""A prediction that is none of today's labels; it is never right."""

COLUMNS: Mapping[Task, Mapping[str, tuple[str, ...]]] = {
    "classification": {
        "accuracy": ("label", "prediction"),
        "macro_f1": ("label", "prediction"),
        "calibration_error": ("label", "prediction", "confidence"),
        "loss": ("loss",),
    },
    "generation": {
        "loss": ("nll", "target_tokens"),
        "perplexity": ("nll", "target_tokens"),
        "bleu": ("bleu_counts", "bleu_totals", "hypothesis_length", "reference_length"),
        "chrf": ("chrf_statistics",),
        "rouge_l": ("rouge_l",),
    },
}


def statistic(metric: str, task: Task, columns: Columns, *, bins: int = 15) -> Statistic:
    """The figure `metric` of the rows in `columns`, as a function of weights.

    Args:
        columns: what `COLUMNS[task][metric]` names, each N long.
        bins: how many confidence bins the calibration error has.

    Raises:
        KeyError: a column is missing, or the task has no such metric.
    """
    read = {name: columns[name] for name in COLUMNS[task][metric]}
    if metric == "accuracy":
        return _mean(read["label"] == read["prediction"])
    if metric == "macro_f1":
        return _macro_f1(read["label"], read["prediction"])
    if metric == "calibration_error":
        return _calibration_error(read["label"] == read["prediction"], read["confidence"], bins)
    if metric == "bleu":
        return _bleu(read)
    if metric == "chrf":
        return _chrf(read["chrf_statistics"])
    if metric == "rouge_l":
        return _mean(read["rouge_l"])
    if task == "classification":
        return _mean(read["loss"])
    per_token = _ratio(read["nll"], read["target_tokens"])
    return per_token if metric == "loss" else _exponential(per_token)


def figure(metric: str, task: Task, columns: Columns, *, bins: int = 15) -> float:
    """The figure over all rows, each counted once; NaN where there are no rows."""
    function = statistic(metric, task, columns, bins=bins)
    rows = len(columns[COLUMNS[task][metric][0]])
    return float(function(np.ones((1, rows)))[0])


def confusion_matrix(labels: NDArray[Any], predictions: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """[C, C + 1] counts, true label by prediction; the last column counts predictions of no known label."""
    columns = np.where(predictions == UNKNOWN_LABEL, classes, predictions).astype(np.int64)
    flat = labels.astype(np.int64) * (classes + 1) + columns
    return np.bincount(flat, minlength=classes * (classes + 1)).reshape(classes, classes + 1).astype(np.int64)


def per_class(confusion: NDArray[np.int64], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """{label: {precision, recall, f1, support}} from `confusion_matrix`; a share of nothing is 0."""
    right = np.diagonal(confusion).astype(float)
    predicted = confusion[:, : len(names)].sum(axis=0)
    support = confusion.sum(axis=1)
    precision = right / np.maximum(predicted, 1)
    recall = right / np.maximum(support, 1)
    f1 = 2 * right / np.maximum(predicted + support, 1)
    return {
        name: {
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
            "support": int(support[i]),
        }
        for i, name in enumerate(names)
    }


@dataclass(frozen=True)
class HypothesisScores:
    """What one generated text gets against its references: sums for the corpus figures, and its own figures.

    Attributes:
        bleu_counts: matching 1- to 4-grams, clipped (`BLEU_ORDER` numbers).
        bleu_totals: 1- to 4-grams of the hypothesis.
        hypothesis_length: tokens of the hypothesis, by sacrebleu's 13a tokenizer.
        reference_length: tokens of the reference nearest in length.
        chrf_statistics: for n = 1 to 6, n-grams of the hypothesis, of its best reference, and common ones
            (18 numbers).
        chrf: the sentence's own chrF2, 0–100; the corpus figure is made from `chrf_statistics`, not its mean.
        rouge_l: F1, 0–1, of the best reference.
    """

    bleu_counts: tuple[int, ...]
    bleu_totals: tuple[int, ...]
    hypothesis_length: int
    reference_length: int
    chrf_statistics: tuple[int, ...]
    chrf: float
    rouge_l: float


def score_hypothesis(hypothesis: str, references: Sequence[str]) -> HypothesisScores:
    """Score one generated text against one or more references."""
    bleu, rouge = _scorers()
    counted = bleu.sentence_score(hypothesis, list(references))
    statistics = chrf_statistics(hypothesis, references)
    return HypothesisScores(
        bleu_counts=tuple(int(n) for n in counted.counts),
        bleu_totals=tuple(int(n) for n in counted.totals),
        hypothesis_length=int(counted.sys_len),
        reference_length=int(counted.ref_len),
        chrf_statistics=statistics,
        chrf=float(chrf_of(np.asarray([statistics], dtype=float))[0]),
        rouge_l=float(rouge.score_multi(list(references), hypothesis)["rougeL"].fmeasure),
    )


def chrf_statistics(hypothesis: str, references: Sequence[str]) -> tuple[int, ...]:
    """(of hypothesis, of reference, common) counts for n = 1 to 6, for the reference with the best chrF.

    sacrebleu sums these over sentences for its corpus figure but does not hand them out.
    """
    ours = _character_ngrams(hypothesis)
    candidates = []
    for reference in references:
        counts: list[int] = []
        for own, other in zip(ours, _character_ngrams(reference), strict=True):
            # sacrebleu counts no n-gram of the hypothesis where the reference is too short to have any.
            counts += [own.total() if other else 0, other.total(), (own & other).total()]
        candidates.append(tuple(counts))
    scores = chrf_of(np.asarray(candidates, dtype=float))
    return candidates[int(np.argmax(scores))]


def chrf_of(statistics: Floats) -> Floats:
    """chrF2 from summed counts [R, 18], 0–100: orders that either side lacks are left out of the averages."""
    counts = statistics.reshape(-1, CHRF_ORDER, 3)
    hypothesis, reference, common = counts[..., 0], counts[..., 1], counts[..., 2]
    there = (hypothesis > 0) & (reference > 0)
    orders = np.maximum(there.sum(axis=1), 1)
    precision = np.where(there, common / np.maximum(hypothesis, 1), 0).sum(axis=1) / orders
    recall = np.where(there, common / np.maximum(reference, 1), 0).sum(axis=1) / orders
    squared = CHRF_BETA**2
    below = squared * precision + recall
    # In sacrebleu's order of operations: the last bit can decide between two equally good references.
    scores: Floats = 100 * ((1 + squared) * precision * recall / np.where(below > 0, below, 1))
    return scores


def _character_ngrams(text: str) -> list[Counter[str]]:
    characters = "".join(text.split())
    return [
        Counter(characters[i : i + n] for i in range(len(characters) - n + 1))
        for n in range(1, CHRF_ORDER + 1)
    ]


@cache
def _scorers() -> tuple[Any, Any]:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer
    from sacrebleu.metrics import BLEU

    # effective_order only silences a warning about the sentence's own score, which is not used.
    return BLEU(effective_order=True), RougeScorer(["rougeL"], tokenizer=DefaultTokenizer(use_stemmer=False))


def _ratio(above: NDArray[Any], below: NDArray[Any]) -> Statistic:
    over, under = above.astype(float), below.astype(float)

    def ratio(weights: Floats) -> Floats:
        # An infinite loss times a weight of 0 is no number, and is meant not to be one.
        with np.errstate(invalid="ignore"):
            return _share(weights @ over, weights @ under)

    return ratio


def _share(above: Floats, below: Floats) -> Floats:
    shares: Floats = np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)
    return shares


def _exponential(inner: Statistic) -> Statistic:
    def exponential(weights: Floats) -> Floats:
        with np.errstate(over="ignore"):
            grown: Floats = np.exp(inner(weights))
        return grown

    return exponential


def _mean(values: NDArray[Any]) -> Statistic:
    return _ratio(values, np.ones(len(values)))


def _macro_f1(labels: NDArray[Any], predictions: NDArray[Any]) -> Statistic:
    names, codes = np.unique(np.concatenate([labels, predictions]), return_inverse=True)
    true, predicted = codes[: len(labels)], codes[len(labels) :]
    right = true == predicted

    def count(weights: Floats, codes: NDArray[np.int64]) -> Floats:
        """[R, N] weights summed by code → [R, C]."""
        places = (np.arange(len(weights))[:, None] * len(names) + codes).ravel()
        cells = len(weights) * len(names)
        counts = np.bincount(places, weights=weights.ravel(), minlength=cells).astype(float)
        return counts.reshape(len(weights), len(names))

    def macro_f1(weights: Floats) -> Floats:
        support = count(weights, true)
        f1 = 2 * count(weights * right, true) / np.maximum(support + count(weights, predicted), 1)
        occurs = support > 0
        return _share(np.where(occurs, f1, 0).sum(axis=1), occurs.sum(axis=1).astype(float))

    return macro_f1


def _calibration_error(right: NDArray[np.bool_], confidence: NDArray[Any], bins: int) -> Statistic:
    # Bins are (0, 1/B], (1/B, 2/B], … as in the paper.
    places = np.clip(np.ceil(np.nan_to_num(confidence) * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.zeros((len(right), bins))
    gaps[np.arange(len(right)), places] = right - confidence

    def calibration_error(weights: Floats) -> Floats:
        return _share(np.abs(weights @ gaps).sum(axis=1), weights.sum(axis=1))

    return calibration_error


def _bleu(columns: Columns) -> Statistic:
    from sacrebleu.metrics import BLEU

    sums = np.column_stack(
        [
            columns["hypothesis_length"],
            columns["reference_length"],
            columns["bleu_counts"].reshape(-1, BLEU_ORDER),
            columns["bleu_totals"].reshape(-1, BLEU_ORDER),
        ]
    ).astype(float)

    def bleu(weights: Floats) -> Floats:
        scores = [
            BLEU.compute_bleu(
                row[2 : 2 + BLEU_ORDER], row[2 + BLEU_ORDER :], row[0], row[1], smooth_method="exp"
            ).score
            for row in np.rint(weights @ sums).astype(np.int64).tolist()
        ]
        return np.where(weights.sum(axis=1) > 0, np.asarray(scores, dtype=float), np.nan)

    return bleu


def _chrf(statistics: NDArray[Any]) -> Statistic:
    per_row = statistics.reshape(-1, 3 * CHRF_ORDER).astype(float)

    def chrf(weights: Floats) -> Floats:
        return np.where(weights.sum(axis=1) > 0, chrf_of(weights @ per_row), np.nan)

    return chrf
