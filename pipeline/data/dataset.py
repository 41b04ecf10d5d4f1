"""Raw data → three validated, tokenised splits and a card that says what is in them.

Three passes, none of which holds the texts in memory: read and check every line (`staging`), decide on
duplicates, groups and splits from digests (`grouping`), tokenise and write. The prepared folder is a pure
function of the raw bytes, the parameters and the tokenizer: two preparations are equal byte for byte.

    prepared/
      train/ validation/ test/   `datasets.save_to_disk` folders
      row_ids                    the first 16 bytes of every row_id, sorted: what the next version is compared with
      row_index                  says of any row whether it is in this version (see `row_index`)
      card.json card.html        what is in it (see `card`)
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.card import CARD, PAGE, ROW_IDS, Made, build_card, read_previous, rows_root
from pipeline.data.card_page import render
from pipeline.data.encoding import encoder_for
from pipeline.data.grouping import check_splits, group
from pipeline.data.reading import Faults, data_files
from pipeline.data.row_index import ROW_INDEX, Columns
from pipeline.data.row_index import write as write_row_index
from pipeline.data.row_progress import Progress
from pipeline.data.splits import SPLITS, Split, row_id, sorted_digests, split_of
from pipeline.data.staging import stage
from pipeline.data.tokenised import save_split, tokenise
from pipeline.digest import manifest, sha256_file
from pipeline.errors import DataError
from pipeline.files import new_folder, write_bytes, write_json
from pipeline.params import DataParams, Task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

__all__ = ["PreparedSummary", "load_prepared", "prepare", "row_id", "split_of", "summarise"]


@dataclass(frozen=True)
class PreparedSummary:
    """What `prepare` made: the content of prepared.json.

    Attributes:
        manifest: SHA-256 of every file in the prepared folder, by relative path.
        task: classification or generation.
        rows: examples per split.
        labels: the label set, in the order of the label numbers; None for generation.
        max_tokens: the most tokens an example may have beside the prefix.
        raw_rows: rows in the raw files.
        duplicates_dropped: rows left out because they were there already.
        conflicting_labels: texts that are there with several labels.
        too_long_dropped: examples left out because they do not fit.
        truncated: examples shortened because they do not fit.
        row_ids: SHA-256 of the row_ids file: equal for equal content, whatever the files and their order.
        row_index: digest of the row_index file, as `row_index.write` gives it.
        row_root: Merkle root over the entries of the row_ids file (see `pipeline.data.merkle`).
    """

    manifest: Mapping[str, str]
    task: Task
    rows: Mapping[str, int]
    labels: tuple[str, ...] | None
    max_tokens: int
    raw_rows: int
    duplicates_dropped: int
    conflicting_labels: int
    too_long_dropped: int
    truncated: int
    row_ids: str
    row_index: str
    row_root: str

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; `from_json` gives the same summary back."""
        return {**asdict(self), "labels": list(self.labels) if self.labels is not None else None}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PreparedSummary:
        """The summary that `to_json` wrote."""
        labels = value["labels"]
        return cls(**{**value, "labels": tuple(labels) if labels is not None else None})


def prepare(
    raw: Path,
    data: DataParams,
    task: Task,
    *,
    tokenizer: PreTrainedTokenizerFast,
    window: int | None,
    prefix_length: int,
    encoder_decoder: bool = False,
    out: Path,
    previous: Path | None = None,
) -> PreparedSummary:
    """Validate `raw`, split and tokenise it into the folder `out`, which is replaced as a whole or not at all.

    Args:
        raw: a JSONL, CSV or Parquet file, or a folder of files of one of these formats.
        data: columns, label set, splits, and what to do with rows that are too long.
        task: which columns are read, and how rows become token ids.
        tokenizer: the base model's.
        window: the base model's positions; `prefix_length` of them go to the prefix. None where nothing limits it.
        prefix_length: vectors per layer.
        encoder_decoder: whether the base is one: source and target then have a window each, without the prefix.
        out: the prepared folder.
        previous: the prepared folder of the version before, to say what changed.

    Raises:
        DataError: anything is wrong with the data; up to 20 faults at once, each with file and line.
        PrefixError: the prefix leaves no room for text.
        BaseModelError: the tokenizer has no end of sequence for generation, or nothing names a limit.
    """
    encoder = encoder_for(
        tokenizer,
        window=window,
        prefix_length=prefix_length,
        max_tokens=data.max_tokens,
        encoder_decoder=encoder_decoder,
    )
    before = read_previous(previous) if previous is not None else None
    faults = Faults()
    files = data_files(raw)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.scratch.") as scratch:
        with Progress(f"Checking {raw.name}", files.bytes) as progress:
            staged = stage(files, raw, data, task, Path(scratch), faults, progress.advance)
        faults.raise_if_any(raw)

        examples = group(staged, data, task)
        check_splits(raw, staged, examples, np.ones(len(examples), dtype=bool), faults)
        faults.raise_if_any(raw)

        with Progress(f"Tokenising {raw.name}", len(examples)) as progress:
            tokenised = tokenise(
                staged, examples, files, data, task, encoder, Path(scratch), faults, progress.advance
            )
        if not tokenised.kept.all():
            check_splits(raw, staged, examples, tokenised.kept, faults)
        faults.raise_if_any(raw)

        with new_folder(out) as folder:
            splits = {split: save_split(tokenised, split, folder / split) for split in SPLITS}
            write_bytes(folder / ROW_IDS, sorted_digests(tokenised.row_ids).tobytes())
            row_index = write_row_index(folder / ROW_INDEX, Columns.of(task, data), tokenised.entries)
            made = Made(
                task=task,
                data=data,
                files=files,
                window=encoder.window,
                prefix_length=encoder.taken,
                limit=encoder.limit,
                staged=staged,
                examples=examples,
                tokenised=tokenised,
                splits=splits,
                row_ids=sha256_file(folder / ROW_IDS),
            )
            card = build_card(made, before)
            write_json(folder / CARD, card)
            write_bytes(folder / PAGE, render(card).encode())
            return PreparedSummary(
                manifest=manifest(folder),
                task=task,
                rows=card["rows"],
                labels=staged.labels,
                max_tokens=encoder.limit,
                raw_rows=card["raw"]["rows"],
                duplicates_dropped=examples.duplicates,
                conflicting_labels=card["conflicting_labels"]["texts"] if card["conflicting_labels"] else 0,
                too_long_dropped=card["too_long"]["dropped"],
                truncated=tokenised.truncated,
                row_ids=card["row_ids"],
                row_index=row_index,
                row_root=rows_root((folder / ROW_IDS).read_bytes()),
            )


def summarise(
    raw: Path,
    data: DataParams,
    task: Task,
    *,
    tokenizer: PreTrainedTokenizerFast,
    window: int | None,
    prefix_length: int,
    encoder_decoder: bool = False,
    previous: Path | None = None,
    page: Path | None = None,
) -> dict[str, Any]:
    """The card of `raw` without keeping anything prepared; arguments and errors as in `prepare`.

    Args:
        page: where to put the card's page, if wanted.
    """
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "prepared"
        prepare(
            raw,
            data,
            task,
            tokenizer=tokenizer,
            window=window,
            prefix_length=prefix_length,
            encoder_decoder=encoder_decoder,
            out=out,
            previous=previous,
        )
        if page is not None:
            write_bytes(page, (out / PAGE).read_bytes())
        card: dict[str, Any] = json.loads((out / CARD).read_text(encoding="utf-8"))
    return card


def load_prepared(folder: Path, split: Split) -> Dataset:
    """One split of the prepared folder `folder`, memory-mapped.

    Raises:
        DataError: the folder does not hold it.
    """
    from datasets import load_from_disk

    if not (folder / split / "state.json").is_file():
        raise DataError(
            [f"{folder / split}: not there or incomplete; expected a prepared split: prepare it again"]
        )
    rows: Dataset = load_from_disk(str(folder / split))
    return rows
