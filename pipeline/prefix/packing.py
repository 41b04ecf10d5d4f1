"""Sources and their references in rows without waste: a source is computed once for the references that share it.

A tree is a source with some of its references behind it. Every token stands where it would stand in a row with its
source alone, and sees what it would see there: its source, and of the references only its own. Several trees lie in
one row, blind to each other. So losses and gradients are those of a padded row per reference, while the padding and
most copies of the source are gone. (The prefix, which every token sees, is put in front by `pipeline.prefix.attention`.)

Shape legend: B rows, N tokens in a row, S tokens of a source, T targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from pipeline.errors import PrefixError
from pipeline.prefix.architecture import Anatomy
from pipeline.prefix.interface import attention_implementation

Tokens = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Tree:
    """A source and references to it, each with at least one token."""

    source: Tokens
    references: tuple[Tokens, ...]

    def __post_init__(self) -> None:
        check_tokens(self.source, self.references)

    @property
    def size(self) -> int:
        """Tokens that are read: the last of each reference is predicted only."""
        return len(self.source) + sum(len(reference) - 1 for reference in self.references)


def check_tokens(source: Tokens, references: Sequence[Tokens]) -> None:
    """Raise PrefixError where there is no reference, or one of them or the source has no token."""
    lengths = [len(source), *map(len, references)]
    if len(lengths) < 2 or 0 in lengths:
        raise PrefixError(
            f"got a source of {lengths[0]} tokens and references of {lengths[1:]}; expected a source and at least one "
            "reference, each with at least one token"
        )


@dataclass(frozen=True)
class PackedRows:
    """Trees in B rows of N tokens.

    Attributes:
        input_ids: [B, N].
        position_ids: of each token within its source and reference, counted without the prefix, [B, N].
        tree: which tree of its row a token belongs to, from 1; 0 for padding, [B, N].
        branch: 0 for a source, and 1 and up for its references, [B, N].
        targets: every reference's tokens, [T].
        positions: where the logits of the targets stand, as indices into B·N, [T]. The first tokens of all references
            of a tree are predicted at one place, the source's last token.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    tree: torch.Tensor
    branch: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor

    def inputs(self, model: PreTrainedModel) -> dict[str, Any]:
        """What the model's layers are called with."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.mask(model),
            "position_ids": self.position_ids,
        }

    def mask(self, model: PreTrainedModel) -> torch.Tensor:
        """Which token sees which, [B, 1, N, N], as `model`'s attention takes it: True, or 0 among minus infinities."""
        tree, branch = self.tree[:, None], self.branch[:, None]
        same = tree[..., :, None] == tree[..., None, :]
        seen = (branch[..., None, :] == 0) | (branch[..., None, :] == branch[..., :, None])
        visible = (same & seen).tril()
        if attention_implementation(model) == "sdpa":
            return visible
        dtype = next(model.parameters()).dtype
        unseen = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return unseen.masked_fill_(~visible, torch.finfo(dtype).min)


def packs(found: Anatomy, longest: int) -> bool:
    """Whether rows of a model can be packed whose longest source and reference have `longest` tokens together.

    Not where positions count from the padding, nor where a layer sees less than a whole example: one mask then does
    not do for all layers.
    """
    fits = found.sliding_window is None or longest <= found.sliding_window
    return found.causal and found.told_positions and found.padding_offset is None and fits


def share(source: Tokens, references: Sequence[Tokens], width: int) -> list[Tree]:
    """The references of a source as trees of nearly equal numbers, as many in each as costs least.

    Many references in a tree spare copies of the source; few spare attention, which every token pays for the whole
    row. Counted are 12·width² multiplications a token in the layers' matrices (the usual estimate) and 2·width for
    every token it might see.

    Args:
        source: [S].
        references: each [tokens], one or more.
        width: the model's hidden size.
    """
    read = sum(len(reference) - 1 for reference in references) / len(references)

    def cost(trees: int) -> float:
        size = len(source) + read * len(references) / trees
        return trees * size * (12 * width**2 + 2 * width * size)

    trees = min(range(1, len(references) + 1), key=cost)
    by_length = sorted(references, key=len)
    cuts = np.array_split(np.arange(len(references)), trees)
    return [Tree(source, tuple(by_length[i] for i in cut)) for cut in cuts]


def pack(trees: Sequence[Tree], pad: int) -> PackedRows:
    """Lay `trees` into rows as wide as the largest: each, largest first, into the fullest row that has room."""
    order = sorted(range(len(trees)), key=lambda i: -trees[i].size)
    width = trees[order[0]].size
    rows: list[list[Tree]] = []
    free: list[int] = []
    for i in order:
        fitting = [row for row, room in enumerate(free) if room >= trees[i].size]
        if fitting:
            row = min(fitting, key=lambda row: free[row])
        else:
            row = len(rows)
            rows.append([])
            free.append(width)
        rows[row].append(trees[i])
        free[row] -= trees[i].size

    shape = (len(rows), width)
    input_ids = np.full(shape, pad, np.int64)
    position_ids, tree, branch = (np.zeros(shape, np.int64) for _ in range(3))
    targets, positions = [], []
    for row, members in enumerate(rows):
        start = 0
        for number, member in enumerate(members, start=1):
            source = len(member.source)
            end = start + source
            input_ids[row, start:end] = member.source
            position_ids[row, start:end] = np.arange(source)
            tree[row, start : start + member.size] = number
            last = row * width + end - 1
            for which, reference in enumerate(member.references, start=1):
                read = len(reference) - 1
                input_ids[row, end : end + read] = reference[:-1]
                position_ids[row, end : end + read] = source + np.arange(read)
                branch[row, end : end + read] = which
                targets.append(reference)
                positions.append(np.concatenate([[last], row * width + end + np.arange(read)]))
                end += read
            start = end
    arrays = (input_ids, position_ids, tree, branch, np.concatenate(targets), np.concatenate(positions))
    return PackedRows(*(torch.from_numpy(array.astype(np.int64)) for array in arrays))
