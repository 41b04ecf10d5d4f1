"""What the places where a prefix enters a layer ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn


@dataclass
class Columns:
    """A prefix's columns in front of a mask.

    Attributes:
        length: P.
        visible: which of them a row sees, [B, P]; None where every row sees all.
    """

    length: int
    visible: torch.Tensor | None = None


class Source(Protocol):
    """Holds the prefix of every layer, or records what the layers have of their own."""

    def given(self, layer: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The prefix of `layer`: keys [P, H, Dk] and values [P, H, Dv], or [B, P, H, …] where rows have their own.

        None for no prefix.
        """

    def seen(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Told the layer's own keys [B, H, N, Dk] and values [B, H, N, Dv], before its prefix is in front."""


def in_front(prefix: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """[P, H, D] or [B, P, H, D] before [B, H, N, D] → [B, H, P + N, D].

    Joined as [B, P + N, H, D]: that is how the projections left the tokens in memory, so each row is one copy.
    """
    rows = tokens.transpose(1, 2)
    return torch.cat([prefix.expand(len(rows), -1, -1, -1), rows], dim=1).transpose(1, 2)


def widen(mask: torch.Tensor, columns: Columns) -> torch.Tensor:
    """The prefix's columns in front of a mask [B or 1, 1, N or 1, N']: True, or 0 where masks are added, if seen."""
    boolean = mask.dtype == torch.bool
    if columns.visible is None:
        return nn.functional.pad(mask, (columns.length, 0), value=True if boolean else 0.0)
    front = columns.visible[:, None, None]  # [B, 1, 1, P]
    if not boolean:
        unseen = torch.zeros(front.shape, dtype=mask.dtype, device=mask.device)
        front = unseen.masked_fill_(~front, torch.finfo(mask.dtype).min)
    shape = (len(front), *mask.shape[1:3], -1)
    return torch.cat([front.expand(shape), mask.expand(shape)], dim=-1)
