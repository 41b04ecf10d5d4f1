"""A linear probe on disk: five arrays in one safetensors file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.evaluate.probe import Probe
from pipeline.files import write_bytes

FILE = "probe.safetensors"


def save(fitted: Probe, folder: Path) -> None:
    """Write what `load` needs to `folder`."""
    from safetensors.numpy import save as serialised

    scaler, regression = fitted._scaler, fitted._regression
    arrays = {
        # In float64: features that hardly vary are told apart by the mean's last digits.
        "mean": scaler.mean_,
        "scale": scaler.scale_,
        "classes": regression.classes_.astype(np.int64),
        "coefficients": regression.coef_.astype(np.float32),
        "intercept": regression.intercept_.astype(np.float32),
    }
    # safetensors writes an array's memory as it lies, and scikit-learn's coefficients lie column by column.
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_bytes(folder / FILE, serialised(arrays))


def load(folder: Path, classes: int) -> Probe:
    """The probe, as far as it is asked: how it was chosen is in the record."""
    from safetensors.numpy import load_file
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    arrays = load_file(folder / FILE)
    scaler, regression = StandardScaler(), LogisticRegression()
    scaler.mean_, scaler.scale_ = arrays["mean"], arrays["scale"]
    scaler.n_features_in_ = len(scaler.mean_)
    regression.classes_ = arrays["classes"]
    regression.coef_, regression.intercept_ = arrays["coefficients"], arrays["intercept"]
    return Probe(float("nan"), float("nan"), 0, classes, scaler, regression)


def parameters(fitted: Probe) -> int:
    """How many numbers were fitted."""
    return int(fitted._regression.coef_.size + fitted._regression.intercept_.size)
