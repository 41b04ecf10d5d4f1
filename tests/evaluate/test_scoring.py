"""Batches and features: nothing is left out, and padding changes nothing."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base import base_model
from pipeline.evaluate import probe, scoring
from tests import evaluation_world

ROWS = [[2, 7, 9, 3], [2, 5, 3], [2, 5, 6, 8, 11, 12, 3], [2, 30, 3], [2, 14, 15, 16, 3]]


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 9), st.none() | st.integers(1, 100))
def test_every_row_is_in_one_batch_that_keeps_the_limits(
    lengths: list[int], size: int, most: int | None
) -> None:
    batches = scoring.length_batches(lengths, size, most_tokens=most)
    assert sorted(int(i) for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= size
        assert most is None or len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= most
    kinds = [length // 10 for length in lengths]
    batches = scoring.length_batches(lengths, size, most_tokens=most, alike=kinds)
    assert sorted(int(i) for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len({kinds[i] for i in batch}) == 1 for batch in batches)
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_an_encoders_features_are_the_mean_over_real_tokens(encoder_folder: Path) -> None:
    model = base_model.load(evaluation_world.resolved(encoder_folder), "classification", labels=("a", "b"))
    found = scoring.features(model, ROWS, 3, what="rows")
    for row, vector in zip(ROWS, found, strict=True):
        with torch.no_grad():
            expected = model.base_model(input_ids=torch.tensor([row])).last_hidden_state[0].mean(dim=0)
        assert vector == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_decoders_features_are_its_last_real_token(decoder_folder: Path) -> None:
    model = base_model.load(evaluation_world.resolved(decoder_folder), "classification", labels=("a", "b"))
    found = scoring.features(model, ROWS, 3, what="rows")
    for row, vector in zip(ROWS, found, strict=True):
        with torch.no_grad():
            expected = model.base_model(input_ids=torch.tensor([row])).last_hidden_state[0, -1]
        assert vector == pytest.approx(expected.numpy(), abs=1e-5)


def test_losses_do_not_depend_on_how_many_logits_are_computed_at_a_time(
    decoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = base_model.load(evaluation_world.resolved(decoder_folder), "generation")
    targets = [[[6, 3]], [[7, 8, 9, 3], [5, 3]], [[4, 3]], [[6, 3], [3]], [[9, 9, 3]]]
    whole = scoring.target_losses(model, None, ROWS, targets, 8, what="rows")
    monkeypatch.setattr(scoring, "_LOGITS", 1)
    assert scoring.target_losses(model, None, ROWS, targets, 8, what="rows") == pytest.approx(whole, rel=1e-5)


def test_a_continuation_is_cut_where_the_window_ends(decoder_folder: Path) -> None:
    base = evaluation_world.resolved(decoder_folder)
    model, words = base_model.load(base, "generation"), base_model.tokenizer(base)
    words.add_special_tokens({"eos_token": "north"})  # an end that the model does not reach
    (text,) = scoring.generated(
        model, None, [[2] * 126], words, batch_size=1, max_new_tokens=50, beams=1, reserved=0, what="rows"
    )
    assert len(text.split()) <= 2


def test_a_continuation_does_not_depend_on_what_is_continued_beside_it(decoder_folder: Path) -> None:
    base = evaluation_world.resolved(decoder_folder)
    model, words = base_model.load(base, "generation"), base_model.tokenizer(base)
    words.add_special_tokens({"eos_token": "north"})  # an end that the model does not reach
    prompts = [[2] * 120, [2, 5], [2] * 100, [2, 38]]
    found = {
        size: scoring.generated(
            model, None, prompts, words, batch_size=size, max_new_tokens=20, beams=1, reserved=4, what="rows"
        )
        for size in (4, 1)
    }
    assert found[4] == found[1]
    short = scoring.generated(
        model, None, prompts[1:2], words, batch_size=1, max_new_tokens=4, beams=1, reserved=4, what="rows"
    )
    assert found[4][1] not in ("", *short)  # it had more room than the longest


def test_progress_without_a_terminal_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_EVERY", 0.0)
    stream = io.StringIO()
    assert len([*scoring._batches([3, 3, 3], 2, "base: test rows", stream=stream)]) == 2
    assert stream.getvalue() == "base: test rows: 2 of 3 rows\nbase: test rows: 3 of 3 rows\n"


def test_progress_in_a_terminal_is_a_bar_and_loses_no_batch() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert len([*scoring._batches([3, 3, 3], 2, "base: test rows", stream=Terminal())]) == 2


def _blobs(rows: int, seed: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, rows)
    centres = np.random.default_rng(9).normal(size=(classes, 8))
    noise = generator.normal(scale=1.5, size=(rows, 8))
    return (centres[labels] + noise).astype(np.float32) * 5 + 3, labels


@pytest.mark.parametrize("classes", [2, 3])
def test_a_probe_is_scikit_learns_regression_on_standardised_features(classes: int) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, validation, test = (_blobs(rows, seed, classes) for seed, rows in enumerate((300, 200, 100)))
    fitted = probe.fit(train, validation, classes)
    assert fitted.strength in probe.STRENGTHS
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=fitted.strength, max_iter=1000)).fit(
        *train
    )
    expected = reference.predict_log_proba(test[0])
    assert fitted.log_probabilities(test[0]) == pytest.approx(expected, abs=5e-3)
    assert fitted.validation_accuracy == pytest.approx(reference.score(*validation), abs=0.02)


def test_the_probes_strength_is_chosen_by_the_validation_rows() -> None:
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(40, 200)).astype(np.float32)
    labels = generator.integers(0, 2, 40)
    noise[:, 0] += 2 * labels
    again = generator.normal(size=(400, 200)).astype(np.float32)
    unseen = generator.integers(0, 2, 400)
    again[:, 0] += 2 * unseen
    # What generalises is weakly regularised when validated on the training rows, strongly on rows of its own.
    assert probe.fit((noise, labels), (again, unseen), 2).strength < probe.STRENGTHS[-1]
    assert probe.fit((noise, labels), (noise, labels), 2).validation_accuracy >= 0.95


def test_a_label_that_the_probe_never_saw_is_improbable_and_not_impossible() -> None:
    features, labels = _blobs(200, 0)
    seen = labels != 1
    fitted = probe.fit((features[seen], labels[seen]), (features, labels), 3)
    log_p = fitted.log_probabilities(features)
    assert (log_p.argmax(axis=1) != 1).all()
    assert np.isfinite(log_p).all()
    assert log_p[:, 1].max() < -20
