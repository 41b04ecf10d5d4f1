"""Prepared rows as batches: read in place from Arrow, grouped by length, padded on the right or packed.

An encoder-decoder's batches are sources and the targets to be written for them: each source is encoded once.

Which examples an optimiser step sees follows from the seed and the epoch alone: the epoch's permutation is cut
into windows of `WINDOW` steps, each window is sorted by length and cut into steps, and the steps are shuffled.
So rows of a step are of similar length and little of a batch is padding, while the make-up of steps still
changes from epoch to epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from pipeline.base.padding import padded
from pipeline.prefix.architecture import anatomy
from pipeline.prefix.generation import decoder_start
from pipeline.prefix.packing import PackedRows, check_tokens, pack, packs, share

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
    from transformers import PreTrainedModel

WINDOW = 32
"""Optimiser steps whose examples are sorted by length together."""

VALIDATION_BATCH = 64

Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Batch:
    """Rows to compute at once: B rows of N tokens, padded on the right.

    Attributes:
        input_ids: [B, N].
        attention_mask: 1 for real tokens, [B, N].
        targets: what is to be predicted: the label of each row [B], or the target tokens of all rows [T].
        positions: generation: where the T logits stand, as indices into B·N; classification: None.
        examples: classification: the number of each row's example in its split, [B]; generation: None.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor | None = None
    examples: torch.Tensor | None = None

    def inputs(self, model: PreTrainedModel) -> dict[str, Any]:
        """What the model's layers are called with."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}


@dataclass(frozen=True)
class SourceTargetBatch:
    """Sources, and targets for an encoder-decoder to write: S sources of N tokens, R targets of M, padded on the right.

    Attributes:
        input_ids: of the sources, [S, N].
        attention_mask: 1 for real tokens, [S, N].
        source: which of the sources each target is for, [R].
        decoder_input_ids: the targets shifted right, behind the token that starts the decoder, [R, M]. What fills them
            up needs no mask, since no token sees what comes after it.
        targets: the target tokens of all rows, [T].
        positions: where the T logits stand, as indices into R·M.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    source: torch.Tensor
    decoder_input_ids: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor

    def inputs(self, model: PreTrainedModel) -> dict[str, Any]:
        """What the decoder's layers are called with; the encoder is run here, over each source once."""
        encoder = anatomy(model).stacks[0]
        states = encoder(input_ids=self.input_ids, attention_mask=self.attention_mask).last_hidden_state
        return {
            "input_ids": self.decoder_input_ids,
            # Not states[self.source], whose gradient several threads add up in any order.
            "encoder_hidden_states": states.index_select(0, self.source),
            "encoder_attention_mask": self.attention_mask[self.source],
        }


AnyBatch = Batch | PackedRows | SourceTargetBatch


def examples_of(batch: AnyBatch) -> torch.Tensor | None:
    """The number of each row's example in its split, [B]; None where rows are no examples."""
    return batch.examples if isinstance(batch, Batch) else None


class Rows(Protocol):
    """A split as the training loop sees it."""

    lengths: Indices
    """Tokens of each example (of its longest row), by which like examples go together, [examples]."""

    longest: Indices
    """Tokens of each example that must fit the base's window, [examples]."""

    def batches(self, examples: Indices, pieces: int) -> Sequence[AnyBatch]:
        """The examples as at most `pieces` batches, rows of like length together."""


class Ragged:
    """A column of lists, read where Arrow has it (memory-mapped), without a copy.

    Args:
        column: lists of numbers, or lists of lists of numbers, without nulls.
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        import pyarrow as pa

        self._chunks: list[tuple[Indices, Any]] = []
        for chunk in column.chunks:
            values = chunk.values
            nested = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
            inner = Ragged(pa.chunked_array([values])) if nested else values.to_numpy()
            self._chunks.append((chunk.offsets.to_numpy(), inner))
        sizes = [len(offsets) - 1 for offsets, _ in self._chunks]
        self._starts = np.cumsum([0, *sizes])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Any:
        """The list at `index`: an array of numbers, or a list of such."""
        chunk = int(np.searchsorted(self._starts, index, side="right")) - 1
        offsets, values = self._chunks[chunk]
        start, end = offsets[index - self._starts[chunk]], offsets[index - self._starts[chunk] + 1]
        if isinstance(values, Ragged):
            return [values[i] for i in range(start, end)]
        return values[start:end]

    def lengths(self) -> Indices:
        """How long each list is."""
        parts = [np.diff(offsets) for offsets, _ in self._chunks]
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)

    def longest_inside(self) -> Indices:
        """Of lists of lists: the length of each one's longest, 0 for one without lists."""
        parts = []
        for offsets, inner in self._chunks:
            # A list without lists has the length 0, and `reduceat` knows no such; a slice's values go on behind its end.
            lengths = np.append(inner.lengths()[: offsets[-1]], 0)
            found = np.maximum.reduceat(lengths, offsets[:-1]) if len(offsets) > 1 else lengths[:0]
            parts.append(np.where(np.diff(offsets) > 0, found, 0))
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)


class ClassificationRows:
    """One row per example: its tokens and its label."""

    def __init__(self, rows: datasets.Dataset, *, pad: int) -> None:
        table = rows.with_format("arrow")[:]
        self._input_ids = Ragged(table["input_ids"])
        self._labels = table["label"].to_numpy()
        self._pad = pad
        self.lengths = self.longest = self._input_ids.lengths()

    def batches(self, examples: Indices, pieces: int) -> list[Batch]:
        """See `Rows`."""
        examples = examples[np.argsort(self.lengths[examples], kind="stable")]
        made = []
        for part in np.array_split(examples, min(pieces, len(examples))):
            input_ids, mask = padded([self._input_ids[i] for i in part], self._pad)
            labels = torch.from_numpy(self._labels[part].astype(np.int64))
            made.append(Batch(input_ids, mask, labels, examples=torch.from_numpy(part)))
        return made


class GenerationRows:
    """Sources with their references for a causal decoder; the loss counts the references' tokens alone.

    Args:
        pad: the token that fills rows up.
        model: what they are for. They are packed (`pipeline.prefix.packing`) where it allows that; otherwise, and for
            None, every reference has a row of its own, padded on the right, with a copy of its source.
    """

    def __init__(self, rows: datasets.Dataset, *, pad: int, model: PreTrainedModel | None = None) -> None:
        table = rows.with_format("arrow")[:]
        self._prompts = Ragged(table["input_ids"])
        self._targets = Ragged(table["target_ids"])
        self._pad = pad
        # The last target token is predicted, never read.
        self.lengths = self.longest = self._prompts.lengths() + self._targets.longest_inside() - 1
        self._width: int | None = None  # of the model's states, where rows are packed
        if model is not None and len(self.lengths) and packs(anatomy(model), int(self.lengths.max())):
            self._width = model.config.get_text_config().hidden_size

    def batches(self, examples: Indices, pieces: int) -> Sequence[AnyBatch]:
        """See `Rows`. One source's references may fall into several batches.

        Raises:
            PrefixError: a source has no token, or no reference, or one without a token.
        """
        for i in examples:
            check_tokens(self._prompts[i], self._targets[i])
        if self._width is not None:
            trees = [
                tree for i in examples for tree in share(self._prompts[i], self._targets[i], self._width)
            ]
            trees.sort(key=lambda tree: tree.size)
            return [
                pack([trees[i] for i in cut], self._pad, self._width) for cut in _cuts(len(trees), pieces)
            ]
        pairs = [(self._prompts[i], target) for i in examples for target in self._targets[i]]
        pairs.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        return [self._batch([pairs[i] for i in cut]) for cut in _cuts(len(pairs), pieces)]

    def _batch(self, pairs: Sequence[tuple[Indices, Indices]]) -> Batch:
        input_ids, mask = padded([np.concatenate([p, t[:-1]]) for p, t in pairs], self._pad)
        width = input_ids.shape[1]
        positions = [i * width + len(p) - 1 + np.arange(len(t)) for i, (p, t) in enumerate(pairs)]
        return Batch(
            input_ids,
            mask,
            torch.from_numpy(np.concatenate([t for _, t in pairs]).astype(np.int64)),
            torch.from_numpy(np.concatenate(positions)),
        )


class SourceTargetRows:
    """Sources with their references for an encoder-decoder; the loss counts the references' tokens alone.

    Args:
        pad: the token that fills rows up.
        start: the token that the decoder begins with.
    """

    def __init__(self, rows: datasets.Dataset, *, pad: int, start: int) -> None:
        table = rows.with_format("arrow")[:]
        self._sources = Ragged(table["input_ids"])
        self._targets = Ragged(table["target_ids"])
        self._pad, self._start = pad, start
        read, written = self._sources.lengths(), self._targets.longest_inside()
        self.lengths, self.longest = read + written, np.maximum(read, written)

    def batches(self, examples: Indices, pieces: int) -> list[SourceTargetBatch]:
        """See `Rows`. A source's references are all in its batch."""
        examples = examples[np.argsort(self.lengths[examples], kind="stable")]
        return [self._batch(examples[cut]) for cut in _cuts(len(examples), pieces)]

    def _batch(self, examples: Indices) -> SourceTargetBatch:
        input_ids, mask = padded([self._sources[i] for i in examples], self._pad)
        groups = [self._targets[i] for i in examples]
        for i, group in zip(examples, groups, strict=True):
            check_tokens(self._sources[i], group)
        targets = [target for group in groups for target in group]
        shifted = [np.concatenate([[self._start], target[:-1]]) for target in targets]
        decoder_input_ids, read = padded(shifted, self._pad)
        return SourceTargetBatch(
            input_ids,
            mask,
            torch.arange(len(groups)).repeat_interleave(torch.tensor([len(group) for group in groups])),
            decoder_input_ids,
            torch.from_numpy(np.concatenate(targets).astype(np.int64)),
            read.flatten().nonzero()[:, 0],
        )


def generation_rows(
    rows: datasets.Dataset, model: PreTrainedModel, *, pad: int, padded: bool = False
) -> GenerationRows | SourceTargetRows:
    """Sources with their references, as `model` computes them.

    Args:
        pad: the token that fills rows up.
        padded: a decoder's rows are not packed, whatever it allows.
    """
    if model.config.is_encoder_decoder:
        return SourceTargetRows(rows, pad=pad, start=decoder_start(model))
    return GenerationRows(rows, pad=pad, model=None if padded else model)


def _cuts(count: int, pieces: int) -> list[Indices]:
    return np.array_split(np.arange(count), min(pieces, count))


def epoch_steps(lengths: Indices, batch_size: int, *, seed: int, epoch: int) -> list[Indices]:
    """The examples of every optimiser step of an epoch: each example once (see the module's text)."""
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(lengths))
    steps: list[Indices] = []
    for start in range(0, len(order), WINDOW * batch_size):
        window = order[start : start + WINDOW * batch_size]
        window = window[np.argsort(lengths[window], kind="stable")]
        steps += [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
    return [steps[i] for i in generator.permutation(len(steps))]


def part_of(examples: Indices, lengths: Indices, rank: int, size: int) -> Indices:
    """The share of process `rank` of `size` in a step's examples: about as many tokens each; it may be empty.

    Longest first, each goes to the process that has the fewest tokens so far (Graham 1969).
    """
    if size == 1:
        return examples
    tokens, owner = [0] * size, np.empty(len(examples), np.int64)
    for i in np.argsort(-lengths[examples], kind="stable"):
        owner[i] = tokens.index(min(tokens))
        tokens[owner[i]] += int(lengths[examples[i]])
    return examples[np.flatnonzero(owner == rank)]


def validation_batches(rows: Rows, rank: int = 0, size: int = 1) -> Iterator[AnyBatch]:
    """The share of process `rank` of `size`, shortest first; all shares together are every example once."""
    order = np.argsort(rows.lengths, kind="stable")[rank::size]
    for start in range(0, len(order), VALIDATION_BATCH):
        yield from rows.batches(order[start : start + VALIDATION_BATCH], 1)
