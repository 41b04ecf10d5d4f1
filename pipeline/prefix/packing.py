"""Sources and their references in rows without waste: what several of them begin with is computed once.

A tree is a source with some of its references behind it: a trie, whose tokens are laid out depth first. Every token
stands where it would stand in a row with its source and reference alone, and sees what it would see there. Several
trees lie in one row, blind to each other. So losses and gradients are those of a padded row per reference, while the
padding and most copies are gone. (The prefix, which every token sees, is put in front by `pipeline.prefix.attention`.)

Shape legend: B rows, N tokens in a row, S tokens of a source, T targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
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

    @cached_property
    def branches(self) -> list[tuple[Tokens, int]]:
        """The references in the order of their tokens, each with how many it begins with like the one before it.

        In this order no other before it begins with more of the same. The last token of each is predicted, never read,
        and not counted.
        """
        ordered = sorted(self.references, key=lambda reference: reference.tolist())
        before: Tokens = self.source[:0]
        found = []
        for reference in ordered:
            most = max(min(len(before), len(reference)) - 1, 0)
            differs = np.flatnonzero(before[:most] != reference[:most])
            found.append((reference, int(differs[0]) if len(differs) else most))
            before = reference
        return found

    @cached_property
    def size(self) -> int:
        """Tokens that are read, each once for all references that begin with it."""
        return len(self.source) + sum(len(reference) - 1 - alike for reference, alike in self.branches)


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
        end: where in its row the tokens end that go on from a token, and so see it, [B, N]; 0 for padding.
        targets: every reference's tokens, [T].
        positions: where the logits of the targets stand, as indices into B·N, [T]. What several references begin with
            is predicted at one place for all of them; the first token at the source's last.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    end: torch.Tensor
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
        place = torch.arange(self.end.shape[1], device=self.end.device)
        # Depth first, so what goes on from a token is all that comes after it, up to the end of that. Padding sees itself.
        visible = (place[:, None] < self.end[:, None, None, :]).tril() | torch.eye(
            len(place), dtype=torch.bool, device=place.device
        )
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
    row (`_cost`). Those that begin alike go together.

    Args:
        source: [S].
        references: each [tokens], one or more.
        width: the model's hidden size.
    """
    read = sum(len(reference) - 1 for reference in references) / len(references)

    def cost(trees: int) -> float:
        return trees * _cost(len(source) + read * len(references) / trees, width)

    trees = min(range(1, len(references) + 1), key=cost)
    ordered = sorted(references, key=lambda reference: reference.tolist())
    cuts = np.array_split(np.arange(len(references)), trees)
    return [Tree(source, tuple(ordered[i] for i in cut)) for cut in cuts]


def pack(trees: Sequence[Tree], pad: int, width: int) -> PackedRows:
    """Lay `trees` into nearly equally full rows: one for each tree, or half as many, and so on, as costs least (`_cost`).

    Many rows leave padding behind the shorter trees; few are wide, and every token pays attention to the whole row.

    Args:
        pad: the token that fills rows up.
        width: the model's hidden size.
    """
    ordered = sorted(trees, key=lambda tree: -tree.size)
    most = len(trees)
    layouts = (_laid_out(ordered, -(-most // 2**halvings)) for halvings in range((most - 1).bit_length() + 1))
    rows = min(layouts, key=lambda rows: len(rows) * _cost(_longest(rows), width))
    return _packed(rows, pad)


def _cost(row: float, width: int) -> float:
    """Of a row of so many tokens, in multiplications: 12·width² a token in a layer's matrices (the usual estimate), and
    2·width for every token it might see, counted twice: on CPU attention multiplies at half the rate or less."""
    return row * (12 * width**2 + 4 * width * row)


def _laid_out(trees: Sequence[Tree], count: int) -> list[list[Tree]]:
    """In `count` rows, each tree in the one that is the least full so far (Graham 1969, for trees in falling size)."""
    rows: list[list[Tree]] = [[] for _ in range(count)]
    full = [0] * count
    for tree in trees:
        row = full.index(min(full))
        rows[row].append(tree)
        full[row] += tree.size
    return rows


def _longest(rows: Sequence[Sequence[Tree]]) -> int:
    return max(sum(tree.size for tree in row) for row in rows)


def _packed(rows: Sequence[Sequence[Tree]], pad: int) -> PackedRows:
    width = _longest(rows)
    shape = (len(rows), width)
    input_ids = np.full(shape, pad, np.int64)
    position_ids, ends = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    targets, positions = [], []
    for row, members in enumerate(rows):
        start = 0
        for member in members:
            source = len(member.source)
            end = start + source
            input_ids[row, start:end] = member.source
            position_ids[row, start:end] = np.arange(source)
            path = np.zeros(0, np.int64)  # where the tokens of the reference stand that was laid down last
            for reference, alike in member.branches:
                more = len(reference) - 1 - alike
                ends[row, path[alike:]] = end
                path = np.concatenate([path[:alike], end + np.arange(more)])
                input_ids[row, end : end + more] = reference[alike:-1]
                position_ids[row, end : end + more] = source + alike + np.arange(more)
                targets.append(reference)
                positions.append(row * width + np.concatenate([[start + source - 1], path]))
                end += more
            ends[row, path] = end
            ends[row, start : start + source] = end
            start = end
    arrays = (input_ids, position_ids, ends, np.concatenate(targets), np.concatenate(positions))
    return PackedRows(*(torch.from_numpy(array.astype(np.int64)) for array in arrays))
