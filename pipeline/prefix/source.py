"""What the places where a prefix enters a layer ask for it."""

from __future__ import annotations

from typing import Protocol

import torch


class Source(Protocol):
    """Holds the prefix of every layer, or records what the layers have of their own."""

    def given(self, layer: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The prefix of `layer`: keys [P, H, Dk] and values [P, H, Dv]; None for no prefix."""

    def seen(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Told the layer's own keys [B, H, N, Dk] and values [B, H, N, Dv], before its prefix is in front."""


def in_front(prefix: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """[P, H, D] before [B, H, N, D] → [B, H, P + N, D].

    Joined as [B, P + N, H, D]: that is how the projections left the tokens in memory, so each row is one copy.
    """
    rows = tokens.transpose(1, 2)
    return torch.cat([prefix.expand(len(rows), -1, -1, -1), rows], dim=1).transpose(1, 2)
