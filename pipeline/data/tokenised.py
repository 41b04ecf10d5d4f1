"""Examples → token ids, streamed into one Arrow file per split, then saved the way `datasets` saves.

The files are the same bytes every time: rows go in the order of the raw files, and the fingerprint that
`datasets` would draw at random is the SHA-256 of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.data.encoding import Encoded, Encoder
from pipeline.data.grouping import Examples
from pipeline.data.reading import DataFiles, Faults
from pipeline.data.row_index import entries
from pipeline.data.splits import DIGEST_BYTES, SPLITS, Digests, Split, as_digests, row_id
from pipeline.data.staging import Staged, gather
from pipeline.digest import sha256_file
from pipeline.params import DataParams, Task

if TYPE_CHECKING:
    from datasets import Dataset, Features

CHUNK_EXAMPLES = 2048
CHUNK_CHARACTERS = 1_000_000
"""Examples tokenised at a time: whichever comes first."""


@dataclass(frozen=True)
class Tokenised:
    """What was written, and the figures the card needs.

    Attributes:
        folder: holds train.arrow, validation.arrow and test.arrow.
        task: classification or generation.
        data: names the slice columns.
        kept: examples that were written: [examples].
        input_lengths: tokens of each example's input_ids, 0 where it was not kept: [examples].
        target_lengths: tokens of each target with its EOS: [targets kept]; empty for classification.
        target_splits: each one's position in `SPLITS`: [targets kept].
        references: targets of each example: [examples].
        row_ids: leading parts of the row ids of the examples kept, in their order: [kept, 16].
        entries: the row index's entries of the examples kept, one after the other.
        truncated: examples that were shortened.
    """

    folder: Path
    task: Task
    data: DataParams
    kept: npt.NDArray[np.bool_]
    input_lengths: npt.NDArray[np.int32]
    target_lengths: npt.NDArray[np.int32]
    target_splits: npt.NDArray[np.uint8]
    references: npt.NDArray[np.int64]
    row_ids: Digests
    entries: bytearray
    truncated: int


def tokenise(
    staged: Staged,
    examples: Examples,
    files: DataFiles,
    data: DataParams,
    task: Task,
    encoder: Encoder,
    folder: Path,
    faults: Faults,
    progress: Callable[[int], None] = lambda done: None,
) -> Tokenised:
    """Tokenise every example and write it to its split's file in `folder`; what does not fit goes to `faults`.

    Args:
        staged: the rows.
        examples: which of them belong together, and where they go.
        files: the raw files, for the messages.
        data: slice columns and what to do with examples that are too long.
        task: classification or generation.
        encoder: tokenizer and limit.
        folder: where the Arrow files go.
        faults: where faults are noted.
        progress: called with the examples done since the last call.
    """
    schema = features(task, data).arrow_schema
    sink = _Sink(examples, data, task, encoder, files, faults)
    with pa.memory_map(str(staged.path)) as source, ExitStack() as stack:
        batches = pa.ipc.open_stream(source).read_all().to_batches()
        writers = [
            stack.enter_context(pa.ipc.new_stream(str(folder / f"{split}.arrow"), schema)) for split in SPLITS
        ]
        for begin, end in _chunks(examples):
            table = gather(batches, examples.rows[examples.starts[begin] : examples.starts[end]])
            for number, rows in sink.encode(table, begin, end):
                writers[number].write_table(pa.Table.from_pydict(rows, schema=schema))
            progress(end - begin)
    return Tokenised(
        folder=folder,
        task=task,
        data=data,
        kept=sink.kept,
        input_lengths=sink.input_lengths,
        target_lengths=np.concatenate([np.zeros(0, np.int32), *sink.target_lengths]),
        target_splits=np.concatenate([np.zeros(0, np.uint8), *sink.target_splits]),
        references=np.diff(examples.starts),
        row_ids=as_digests(sink.row_ids),
        entries=sink.entries,
        truncated=sink.truncated,
    )


def features(task: Task, data: DataParams) -> Features:
    """The columns of a prepared split, as `datasets` describes them."""
    from datasets import Features, List, Value

    tokens = List(Value("int32"))
    columns: dict[str, Any] = {"row_id": Value("string")}
    if task == "classification":
        columns |= {"text": Value("string"), "label": Value("int32"), "input_ids": tokens}
    else:
        columns |= {"source": Value("string"), "targets": List(Value("string"))}
        columns |= {"input_ids": tokens, "target_ids": List(tokens)}
    return Features(columns | {f"slice.{column}": Value("string") for column in data.slices})


def save_split(tokenised: Tokenised, split: Split, folder: Path) -> Dataset:
    """Save one split with `datasets.save_to_disk` and return it, memory-mapped from where it was written first."""
    import datasets
    from datasets.table import MemoryMappedTable

    path = tokenised.folder / f"{split}.arrow"
    rows = datasets.Dataset(
        MemoryMappedTable.from_file(str(path)),
        info=datasets.DatasetInfo(features=features(tokenised.task, tokenised.data)),
        fingerprint=sha256_file(path)[:16],
    )
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        rows.save_to_disk(str(folder))
    finally:
        if shown:
            datasets.enable_progress_bars()
    return rows


class _Sink:
    """Turns chunks of staged rows into columns per split, and keeps the figures."""

    def __init__(
        self,
        examples: Examples,
        data: DataParams,
        task: Task,
        encoder: Encoder,
        files: DataFiles,
        faults: Faults,
    ) -> None:
        self._examples, self._data, self._task = examples, data, task
        self._encoder, self._files, self._faults = encoder, files, faults
        self.kept = np.ones(len(examples), dtype=bool)
        self.input_lengths = np.zeros(len(examples), dtype=np.int32)
        self.target_lengths: list[npt.NDArray[np.int32]] = []
        self.target_splits: list[npt.NDArray[np.uint8]] = []
        self.row_ids = bytearray()
        self.entries = bytearray()
        self.truncated = 0

    def encode(self, table: pa.Table, begin: int, end: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Split number and columns of the examples `begin` to `end`, whose staged rows are `table`."""
        starts = self._examples.starts[begin : end + 1] - self._examples.starts[begin]
        heads = table.take(pa.array(starts[:-1])) if len(table) != end - begin else table
        keys = heads["key"].to_pylist()
        values = table["value"].to_pylist()
        targets = [
            values[first:last] for first, last in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
        ]
        encoded = self._fit(heads, begin, keys, targets)

        ids = [row_id(key, group) for key, group in zip(keys, targets, strict=True)]
        kept = self.kept[begin:end]
        for place in np.flatnonzero(kept).tolist():
            self.row_ids += bytes.fromhex(ids[place][: 2 * DIGEST_BYTES])
            self.entries += entries(self._task, keys[place], targets[place])
        self.input_lengths[begin:end] = [len(example.input_ids) for example in encoded]
        self.input_lengths[begin:end][~kept] = 0
        for number in range(len(SPLITS)):
            chosen = np.flatnonzero(kept & (self._examples.split[begin:end] == number))
            if len(chosen):
                yield number, self._columns(heads, begin, chosen, ids, targets, encoded)

    def _columns(
        self,
        heads: pa.Table,
        begin: int,
        chosen: npt.NDArray[np.int64],
        ids: list[str],
        targets: list[list[str]],
        encoded: list[Encoded],
    ) -> dict[str, Any]:
        places = chosen.tolist()
        rows = heads.take(pa.array(chosen))
        columns: dict[str, Any] = {"row_id": [ids[place] for place in places]}
        inputs = [encoded[place].input_ids for place in places]
        if self._task == "classification":
            labels = self._examples.label[begin + chosen]
            columns |= {"text": rows["key"], "label": labels, "input_ids": inputs}
        else:
            target_ids = [encoded[place].target_ids for place in places]
            lengths = np.array([len(ids) for group in target_ids for ids in group], dtype=np.int32)
            self.target_lengths.append(lengths)
            split = self._examples.split[begin + places[0]]
            self.target_splits.append(np.full(len(lengths), split, dtype=np.uint8))
            columns |= {"source": rows["key"], "targets": [targets[place] for place in places]}
            columns |= {"input_ids": inputs, "target_ids": target_ids}
        return columns | {f"slice.{column}": rows[f"slice.{column}"] for column in self._data.slices}

    def _fit(self, heads: pa.Table, begin: int, keys: list[str], targets: list[list[str]]) -> list[Encoded]:
        """Token ids of each example, made to fit, or noted as a fault, or marked as not kept."""
        encoder = self._encoder
        classify = self._task == "classification"
        encoded = encoder.texts(keys) if classify else encoder.sources(keys, targets)
        for place, example in enumerate(encoded):
            if example.content <= 0:
                what = "text" if classify else "source or target"
                self._faults.add(
                    self._where(heads, place),
                    f"the {what} has no tokens (it holds only characters that the tokenizer ignores); expected some",
                )
            elif example.length > encoder.limit:
                if self._data.too_long == "error":
                    self._faults.add(self._where(heads, place), self._too_long(example.length))
                elif self._data.too_long == "drop":
                    self.kept[begin + place] = False
                else:
                    encoded[place] = self._shorten(example, keys[place], targets[place])
                    self.truncated += 1
        return encoded

    def _shorten(self, example: Encoded, key: str, targets: list[str]) -> Encoded:
        if self._task == "classification":
            return Encoded(self._encoder.cut_text(key), [], example.length, example.content)
        prompt, shorter = self._encoder.cut_source(example, key, targets)
        return Encoded(prompt, shorter, example.length, example.content)

    def _where(self, heads: pa.Table, place: int) -> str:
        return f"{self._files.paths[heads['file'][place].as_py()]}:{heads['line'][place].as_py()}"

    def _too_long(self, length: int) -> str:
        what = "text" if self._task == "classification" else self._encoder.example
        return (
            f"the {what} is {length} tokens long; expected at most {self._encoder.limit}"
            f" ({self._encoder.reason}): shorten it, or set data.too_long to truncate or drop"
        )


def _chunks(examples: Examples) -> Iterator[tuple[int, int]]:
    """Ranges of examples of at most CHUNK_EXAMPLES, and of CHUNK_CHARACTERS where one alone is not longer."""
    ends = np.cumsum(examples.size)
    begin = 0
    while begin < len(examples):
        before = ends[begin - 1] if begin else 0
        fits = int(np.searchsorted(ends, before + CHUNK_CHARACTERS, side="right"))
        end = min(max(fits, begin + 1), begin + CHUNK_EXAMPLES, len(examples))
        yield begin, end
        begin = end
