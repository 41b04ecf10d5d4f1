"""The linear probe: what the frozen base can do without a prefix, and so what a prefix has to beat.

Multinomial logistic regression on the base's standardised features (`pipeline.evaluate.scoring.features`), trained on the
training rows. How strongly it is regularised is chosen by the accuracy on the validation rows; the test rows
choose nothing. Alain & Bengio 2016, Understanding Intermediate Layers Using Linear Classifier Probes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_ROWS = 20_000
"""Training rows used at most; accuracy on a few hundred features gains next to nothing from more."""

STRENGTHS = (0.003, 0.03, 0.3, 3.0)
"""The inverse regularisation strengths tried, in this order, until one is no better than the one before."""

_FLOOR = float(np.log(1e-12))
"""ln p of a label that no training row of the probe had."""

Features = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Probe:
    """A trained probe.

    Attributes:
        strength: the inverse regularisation strength that was chosen.
        validation_accuracy: what chose it.
        rows: training rows used.
        classes: how many labels there are.
    """

    strength: float
    validation_accuracy: float
    rows: int
    classes: int
    _scaler: Any
    _regression: Any

    def log_probabilities(self, features: Features) -> NDArray[np.float64]:
        """[N, C] natural logarithms of the labels' probabilities."""
        return _log_probabilities(self._regression, self._scaler.transform(features), self.classes)


def fit(train: tuple[Features, Labels], validation: tuple[Features, Labels], classes: int) -> Probe:
    """Train a probe on features [N, H] and labels [N] of the training and validation rows."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    features, labels = train
    scaler = StandardScaler().fit(features)
    known, unseen = scaler.transform(features), scaler.transform(validation[0])
    best: Probe | None = None
    start: Any = None
    for strength in STRENGTHS:
        # Each begins where the stronger regularisation before it ended, which takes most of the iterations away.
        regression = LogisticRegression(C=strength, max_iter=200, warm_start=True)
        if start is not None:
            regression.classes_, regression.coef_, regression.intercept_ = start
        with warnings.catch_warnings():
            # A weakly regularised fit to separable rows has no end; where it stops is one more candidate.
            warnings.simplefilter("ignore", ConvergenceWarning)
            regression.fit(known, labels)
        start = (regression.classes_, regression.coef_.copy(), regression.intercept_.copy())
        predicted = _log_probabilities(regression, unseen, classes).argmax(axis=1)
        accuracy = float((predicted == validation[1]).mean())
        if best is not None and accuracy <= best.validation_accuracy:
            break
        best = Probe(strength, accuracy, len(labels), classes, scaler, regression)
    assert best is not None
    return best


def _log_probabilities(regression: Any, standardised: NDArray[Any], classes: int) -> NDArray[np.float64]:
    scores = np.asarray(regression.decision_function(standardised), dtype=float)
    if scores.ndim == 1:  # of two labels scikit-learn gives only the second's log odds
        scores = np.column_stack([np.zeros_like(scores), scores])
    scores -= scores.max(axis=1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
    found = np.full((len(scores), classes), _FLOOR)
    found[:, regression.classes_] = np.maximum(scores, _FLOOR)
    return found
