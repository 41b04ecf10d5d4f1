"""The prefix: its parameters, its optional reparameterisation, and where it starts from.

Li & Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", 2021, https://arxiv.org/abs/2101.00190.

Shape legend: L layers, H key/value heads, P prefix positions, D numbers per head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.errors import PrefixError
from pipeline.prefix.architecture import anatomy


@dataclass(frozen=True)
class PrefixShape:
    """What a prefix has to fit: the base's `layers`, key/value `heads` and `head_size`."""

    layers: int
    heads: int
    head_size: int

    @classmethod
    def of_model(cls, model: PreTrainedModel) -> PrefixShape:
        """The shape for `model`.

        Raises:
            PrefixError: `model` cannot carry a prefix (see `pipeline.prefix.architecture`).
        """
        found = anatomy(model)
        return cls(layers=len(found.attention), heads=found.heads, head_size=found.head_size)

    @property
    def token_size(self) -> int:
        """Numbers in the key (or the value) of one position in one layer: H × D."""
        return self.heads * self.head_size

    def key_values(self, length: int) -> tuple[int, int, int, int, int]:
        """[L, 2, H, P, D]; index 0 of the second dimension holds the keys, 1 the values."""
        return (self.layers, 2, self.heads, length, self.head_size)


class Prefix(nn.Module):
    """P keys and P values for every attention layer.

    Without a projection the vectors are the parameters (`vectors`, [L, 2, H, P, D]). With one they come out of
    an MLP (equation 3 of the paper, in the shape of PEFT's PrefixEncoder): `embedding` [P, H·D] → Linear →
    Tanh → Linear [P, L·2·H·D]. They start at zero; call `init_random` or `init_from`.

    Args:
        shape: what it has to fit.
        length: P.
        projection: the MLP's hidden width; None trains the vectors directly.
    """

    def __init__(self, shape: PrefixShape, length: int, *, projection: int | None = None) -> None:
        super().__init__()
        if length < 1:
            raise PrefixError(f"prefix length: got {length}; expected at least 1")
        self.shape = shape
        self.length = length
        self.projection = projection
        if projection is None:
            self.vectors = nn.Parameter(torch.zeros(shape.key_values(length)))
        else:
            self.embedding = nn.Embedding(length, shape.token_size)
            self.widen = nn.Linear(shape.token_size, projection)
            self.spread = nn.Linear(projection, shape.layers * 2 * shape.token_size)
            nn.init.zeros_(self.spread.weight)
            nn.init.zeros_(self.spread.bias)

    def key_values(self) -> torch.Tensor:
        """The prefix as the model sees it, [L, 2, H, P, D]; gradients reach the parameters."""
        if self.projection is None:
            return self.vectors
        return unflatten(self.spread(self._hidden()), self.shape)

    @torch.no_grad()
    def init_random(self, scale: float, generator: torch.Generator) -> None:
        """Start from random vectors with standard deviation `scale`.

        With a projection the MLP is drawn (embedding from N(0, 1), layers uniform, as PEFT does) and its last
        layer scaled so that the vectors have that standard deviation.
        """
        if self.projection is None:
            self.vectors.normal_(0.0, scale, generator=generator)
            return
        self._draw_hidden(generator)
        last = self.spread
        nn.init.uniform_(last.weight, -1.0, 1.0, generator=generator)
        nn.init.zeros_(last.bias)
        last.weight.mul_(scale / self.key_values().std())

    @torch.no_grad()
    def init_from(self, key_values: torch.Tensor) -> None:
        """Start exactly from `key_values` [L, 2, H, P, D].

        With a projection the MLP's first half is drawn (seed 0) and its last layer solved for in float64.

        Raises:
            PrefixError: another shape, non-finite numbers, or a projection too narrow to yield the vectors.
        """
        expected = self.shape.key_values(self.length)
        if tuple(key_values.shape) != expected:
            raise PrefixError(
                f"prefix vectors: got shape {list(key_values.shape)}; expected {list(expected)}"
            )
        if not torch.isfinite(key_values).all():
            raise PrefixError("prefix vectors: got NaN or infinity; expected finite numbers")
        if self.projection is None:
            self.vectors.copy_(key_values)
            return
        if self.projection < self.length:
            raise PrefixError(
                f"a projection of width {self.projection} cannot yield {self.length} given vectors; "
                f"make it at least {self.length} wide, start from random vectors, or train without a projection"
            )
        self._draw_hidden(torch.Generator().manual_seed(0))
        target = flatten(key_values).double()  # [P, L·2·H·D]
        centre = target.mean(dim=0)
        hidden = self._hidden().double()  # [P, projection]
        last = self.spread
        last.weight.copy_((torch.linalg.pinv(hidden) @ (target - centre)).T)
        last.bias.copy_(centre)
        error = (self.key_values() - key_values).abs().max().item()
        if not error <= 1e-4 * max(1.0, key_values.abs().max().item()):
            raise PrefixError(
                f"a projection of width {self.projection} misses the given vectors by {error:.2g}; widen it"
            )

    def folded(self) -> Prefix:
        """The same vectors without the MLP, on their own memory."""
        plain = Prefix(self.shape, self.length)
        plain.vectors = nn.Parameter(self.key_values().detach().clone())
        return plain

    def _hidden(self) -> torch.Tensor:
        return torch.tanh(self.widen(self.embedding.weight))  # [P, projection]

    def _draw_hidden(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.embedding.weight, generator=generator)
        first = self.widen
        bound = 1 / math.sqrt(first.in_features)
        nn.init.uniform_(first.weight, -bound, bound, generator=generator)
        nn.init.uniform_(first.bias, -bound, bound, generator=generator)


def flatten(key_values: torch.Tensor) -> torch.Tensor:
    """[L, 2, H, P, D] → [P, L·2·H·D], the order in which PEFT stores a prefix."""
    return key_values.permute(3, 0, 1, 2, 4).reshape(key_values.shape[3], -1)


def unflatten(rows: torch.Tensor, shape: PrefixShape) -> torch.Tensor:
    """[P, L·2·H·D] → [L, 2, H, P, D]; the inverse of `flatten`."""
    return rows.view(len(rows), shape.layers, 2, shape.heads, shape.head_size).permute(1, 2, 3, 0, 4)
