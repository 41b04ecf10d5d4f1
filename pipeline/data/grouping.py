"""Staged rows → examples: duplicates left out, a source's targets together, splits given, classes checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.data.reading import Faults, preview
from pipeline.data.splits import SPLITS, first_equal, split_numbers
from pipeline.data.staging import Staged
from pipeline.params import DataParams, Task


@dataclass(frozen=True)
class Examples:
    """Which staged rows make up which example, in the order in which examples first appear.

    Attributes:
        rows: staged rows without exact duplicates, example by example: [pairs].
        starts: where each example's rows begin in `rows`, and the end: [examples + 1].
        split: positions in `SPLITS`: [examples].
        label: label numbers; zeros for generation: [examples].
        size: characters: [examples].
        duplicates: staged rows left out because key and value were there already.
        near_duplicates: examples whose key differs from an earlier one's only in case, width or spacing.
        slice_disagreements: staged rows whose slice columns differ from those of the first row of their
            example; the first row's count.
    """

    rows: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    split: npt.NDArray[np.uint8]
    label: npt.NDArray[np.int32]
    size: npt.NDArray[np.int64]
    duplicates: int
    near_duplicates: int
    slice_disagreements: int

    def __len__(self) -> int:
        return len(self.split)


@dataclass(frozen=True)
class Conflict:
    """One normalised text that is there with several labels.

    Attributes:
        row: the staged row where it stands first.
        labels: its label numbers, ascending.
    """

    row: int
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Conflicts:
    """Texts with several labels: how many texts, how many rows they are, and the first few."""

    texts: int
    rows: int
    first: tuple[Conflict, ...]


def group(staged: Staged, data: DataParams, task: Task) -> Examples:
    """Classification: an example per text and label. Generation: an example per source, with all of its targets."""
    count = len(staged.row)
    first = first_equal(staged.row)
    kept = np.flatnonzero(first == np.arange(count))
    owner = first if task == "classification" else first_equal(staged.group)
    rows = kept[np.argsort(owner[kept], kind="stable")]
    starts = np.flatnonzero(np.r_[True, owner[rows][1:] != owner[rows][:-1]])
    heads = rows[starts]
    spread = staged.spread[heads]
    key = first_equal(staged.group)[heads]
    alike = first_equal(spread)
    return Examples(
        rows=rows,
        starts=np.r_[starts, len(rows)].astype(np.int64),
        split=split_numbers(spread, data.splits),
        label=staged.label[heads],
        size=np.add.reduceat(staged.size[rows], starts),
        duplicates=count - len(kept),
        near_duplicates=int(np.count_nonzero(key != key[alike])),
        slice_disagreements=int(np.count_nonzero((staged.slices != staged.slices[owner]).any(axis=1))),
    )


def conflicts(staged: Staged, examples: Examples, limit: int) -> Conflicts:
    """Classification examples whose text, normalised, is there with another label too; they are kept."""
    heads = examples.rows[examples.starts[:-1]]
    text = first_equal(staged.spread[heads])
    pairs = np.unique(text * np.int64(len(staged.labels or ())) + examples.label)
    texts, labels = np.unique(pairs // len(staged.labels or ()), return_counts=True)
    torn = texts[labels > 1]
    number = pairs % len(staged.labels or ())
    owner = pairs // len(staged.labels or ())
    first = tuple(
        Conflict(int(heads[place]), tuple(int(label) for label in number[owner == place]))
        for place in torn[:limit]
    )
    return Conflicts(len(torn), int(np.count_nonzero(np.isin(text, torn))), first)


def class_counts(examples: Examples, kept: npt.NDArray[np.bool_], classes: int) -> npt.NDArray[np.int64]:
    """Examples per class and split: [classes, splits]."""
    places = examples.label[kept].astype(np.int64) * len(SPLITS) + examples.split[kept]
    return np.bincount(places, minlength=classes * len(SPLITS)).reshape(classes, len(SPLITS))


def check_splits(
    raw: Path, staged: Staged, examples: Examples, kept: npt.NDArray[np.bool_], faults: Faults
) -> None:
    """Note empty splits and, for classification, classes that cannot be learnt or judged.

    Args:
        raw: the data, for the messages.
        staged: holds the label set.
        examples: holds each example's split and class.
        kept: which examples are left: [examples].
        faults: where faults are noted.
    """
    where = str(raw)
    if staged.labels is not None:
        if len(staged.labels) < 2:
            got = ", ".join(map(preview, staged.labels)) or "none"
            faults.add(where, f"got {len(staged.labels)} class ({got}); expected at least 2")
        counts = class_counts(examples, kept, len(staged.labels))
        for label, (train, validation, test) in zip(staged.labels, counts.tolist(), strict=True):
            name, total = f"class {preview(label)}", train + validation + test
            if total == 0:
                faults.add(
                    where, f"{name} is in data.labels and has no rows; add some, or leave it out there"
                )
            elif total == 1:
                faults.add(
                    where, f"{name} has one row; expected at least 2: add rows, or leave the class out"
                )
            elif train == 0:
                there = [f"{n} in {split}" for n, split in ((validation, SPLITS[1]), (test, SPLITS[2])) if n]
                faults.add(
                    where,
                    f"{name} has rows only outside train ({', '.join(there)}); expected some to learn from:"
                    " add rows, or leave the class out",
                )
    sizes = np.bincount(examples.split[kept], minlength=len(SPLITS))
    for split, size in zip(SPLITS, sizes.tolist(), strict=True):
        if size == 0:
            faults.add(
                where,
                f"no rows fall into {split} (of {int(kept.sum())}); expected at least one:"
                f" add rows, or raise data.splits.{split}",
            )
