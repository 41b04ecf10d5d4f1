"""The test rows, and what each system makes of them: the columns of rows.parquet.

Every function returns columns (see `pipeline.evaluate.scored`) for the rows it was given, in their order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from pipeline.data.dataset import load_prepared
from pipeline.data.splits import Split
from pipeline.errors import DataError
from pipeline.evaluate import probe, scoring
from pipeline.evaluate.metrics import UNKNOWN_LABEL, score_hypothesis
from pipeline.evaluate.scored import SLICE
from pipeline.params import EvaluationParams, Task
from pipeline.prefix.tuning import Prefix

Lines = dict[str, Any]
"""Column name → values, one per row."""


@dataclass(frozen=True)
class Examples:
    """Rows of a prepared split, N long throughout; the last two are of one task each.

    Attributes:
        row_ids: who they are.
        texts: the text or the source: what a row's split follows from.
        input_ids: tokens of the text, or of the prompt.
        slices: slice column (without `SLICE`) → its values.
        labels: classification: the label numbers.
        targets: generation: the reference texts.
        target_ids: generation: their tokens, each with its end token.
    """

    row_ids: list[str]
    texts: list[str]
    input_ids: list[list[int]]
    slices: dict[str, list[str]]
    labels: NDArray[np.int64]
    targets: list[list[str]]
    target_ids: list[list[list[int]]]

    def __len__(self) -> int:
        return len(self.row_ids)

    def only(self, places: Sequence[int]) -> Examples:
        """The rows at `places`."""

        def pick(values: list[Any]) -> list[Any]:
            return [values[i] for i in places] if values else values

        return Examples(
            row_ids=pick(self.row_ids),
            texts=pick(self.texts),
            input_ids=pick(self.input_ids),
            slices={name: pick(values) for name, values in self.slices.items()},
            labels=self.labels[list(places)] if len(self.labels) else self.labels,
            targets=pick(self.targets),
            target_ids=pick(self.target_ids),
        )


def read_examples(
    prepared: Path, split: Split, task: Task, slices: Sequence[str] = (), *, at_most: int | None = None
) -> Examples:
    """Read a prepared split.

    Args:
        at_most: of a larger split, this many rows spread evenly over it.

    Raises:
        DataError: it is not there, or lacks a column.
    """
    rows = load_prepared(prepared, split)
    wanted = ["row_id", "input_ids", *(SLICE + name for name in slices)]
    wanted += ["text", "label"] if task == "classification" else ["source", "targets", "target_ids"]
    missing = [name for name in wanted if name not in rows.column_names]
    if missing:
        problems = [f"{name}: no such column; prepare the data again" for name in missing]
        raise DataError(problems, heading=f"{prepared / split}:")
    if at_most is not None and len(rows) > at_most:
        rows = rows.select(np.linspace(0, len(rows) - 1, at_most).astype(np.int64))
    table = rows.select_columns(wanted).with_format("arrow")[:]
    columns: dict[str, list[Any]] = {name: table[name].to_pylist() for name in wanted}
    return Examples(
        row_ids=columns["row_id"],
        texts=columns["text" if task == "classification" else "source"],
        input_ids=columns["input_ids"],
        slices={name: columns[SLICE + name] for name in slices},
        labels=np.asarray(columns.get("label", []), dtype=np.int64),
        targets=columns.get("targets", []),
        target_ids=columns.get("target_ids", []),
    )


def classified(
    log_probabilities: NDArray[np.float64],
    labels: NDArray[np.int64],
    *,
    theirs: Sequence[str] | None = None,
    today: Sequence[str] = (),
) -> Lines:
    """Predictions from ln p [N, C].

    Args:
        labels: the right ones, as numbers of today's labels.
        theirs: the names of the C labels where they are not `today`, the names of today's. A prediction that is
            none of today's labels is `UNKNOWN_LABEL`. A row whose label the system does not know is wrong
            whatever it says, and counts as if it had guessed evenly among today's labels: an infinite loss
            would make any other system better than it.
    """
    best = log_probabilities.argmax(axis=1)
    confidence = np.exp(log_probabilities.max(axis=1))
    if theirs is None:
        losses = -log_probabilities[np.arange(len(labels)), labels]
        return {"label": labels, "prediction": best, "confidence": confidence, "loss": losses}
    ours, other = ({name: i for i, name in enumerate(names)} for names in (today, theirs))
    to_today = np.asarray([ours.get(name, UNKNOWN_LABEL) for name in theirs])
    to_theirs = np.asarray([other.get(name, UNKNOWN_LABEL) for name in today])
    wanted = to_theirs[labels]
    known = -log_probabilities[np.arange(len(labels)), np.maximum(wanted, 0)]
    losses = np.where(wanted == UNKNOWN_LABEL, math.log(len(today)), known)
    return {"label": labels, "prediction": to_today[best], "confidence": confidence, "loss": losses}


def probed(
    model: PreTrainedModel, prepared: Path, test: Examples, classes: int, params: EvaluationParams
) -> tuple[Lines, probe.Probe]:
    """What a linear probe on the frozen base, without any prefix, makes of the test rows."""
    wanted: Mapping[Split, int | None] = {"train": probe.MOST_ROWS, "validation": None}
    found = {}
    for split, at_most in wanted.items():
        rows = read_examples(prepared, split, "classification", at_most=at_most)
        what = f"base: {split} rows"
        found[split] = scoring.features(model, rows.input_ids, params.batch_size, what=what), rows.labels
    fitted = probe.fit(found["train"], found["validation"], classes)
    features = scoring.features(model, test.input_ids, params.batch_size, what="base: test rows")
    return classified(fitted.log_probabilities(features), test.labels), fitted


def written(
    model: PreTrainedModel,
    prefix: Prefix | None,
    rows: Examples,
    tokenizer: PreTrainedTokenizerFast,
    params: EvaluationParams,
    *,
    chosen: Sequence[int],
    reserved: int,
    system: str,
    tokens: Sequence[int] | None = None,
) -> Lines:
    """Losses of all rows' targets, and the texts generated for the `chosen` rows.

    Args:
        chosen: positions of the rows to generate for; the others have nulls.
        reserved: positions of the base's window that are not for tokens, the same for systems to be compared.
        system: names it in the progress.
        tokens: how many target tokens each row counts for, where not as many as it has here: a total −ln p of
            the same texts can be compared between tokenizers, a mean over different tokens cannot.
    """
    losses = scoring.target_losses(
        model, prefix, rows.input_ids, rows.target_ids, params.batch_size, what=f"{system}: losses"
    )
    texts = scoring.generated(
        model,
        prefix,
        [rows.input_ids[i] for i in chosen],
        tokenizer,
        batch_size=params.batch_size,
        max_new_tokens=params.max_new_tokens,
        beams=params.beams,
        reserved=reserved,
        what=f"{system}: generated texts",
    )
    scores = {i: score_hypothesis(text, rows.targets[i]) for i, text in zip(chosen, texts, strict=True)}
    hypotheses = dict(zip(chosen, texts, strict=True))
    lines: Lines = {
        "nll": losses,
        "target_tokens": tokens if tokens is not None else target_tokens(rows),
        "hypothesis": [hypotheses.get(i) for i in range(len(rows))],
    }
    for name in (
        "bleu_counts", "bleu_totals", "hypothesis_length", "reference_length", "chrf_statistics", "chrf", "rouge_l",
    ):  # fmt: skip
        lines[name] = [getattr(scores[i], name) if i in scores else None for i in range(len(rows))]
    return lines


def target_tokens(rows: Examples) -> list[int]:
    """Target tokens of each row, all references together."""
    return [sum(map(len, group)) for group in rows.target_ids]
