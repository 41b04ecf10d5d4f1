"""The prefix: its parameters, its optional reparameterisation, and where it starts from.

Li & Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", 2021, https://arxiv.org/abs/2101.00190.

A prefix is kept as PEFT stores one: a row of numbers for each position, and in it, layer after layer, the keys of
all heads and then their values.

Shape legend: L layers, H key/value heads, P prefix positions, Dk and Dv numbers per key and value, S = Σ H·(Dk + Dv)
over the layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.errors import PrefixError
from pipeline.prefix.architecture import LayerShape, anatomy


@dataclass(frozen=True)
class PrefixShape:
    """What a prefix has to fit: the shape of each of the base's attention layers."""

    layers: tuple[LayerShape, ...]

    @classmethod
    def uniform(cls, layers: int, heads: int, head_size: int) -> PrefixShape:
        """`layers` alike, each of `heads` with keys and values of `head_size`."""
        return cls((LayerShape(heads, head_size, head_size),) * layers)

    @classmethod
    def of_model(cls, model: PreTrainedModel) -> PrefixShape:
        """The shape for `model`.

        Raises:
            PrefixError: `model` cannot carry a prefix (see `pipeline.prefix.architecture`).
        """
        return cls(anatomy(model).layers)

    def __str__(self) -> str:
        return ", then ".join(
            f"{count} layer{'s' if count > 1 else ''} of {layer.heads} heads of {_sizes(layer)}"
            for layer, count in self._runs()
        )

    @property
    def size(self) -> int:
        """Numbers in one position: S."""
        return sum(layer.size for layer in self.layers)

    @property
    def token_size(self) -> int:
        """Numbers in the keys of one position in the first layer: H·Dk, the width of a projection's input."""
        return self.layers[0].heads * self.layers[0].key_size

    def per_layer(self, rows: torch.Tensor) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """[…, P, S] → for each layer its keys […, P, H, Dk] and values […, P, H, Dv], as views."""
        widths = [layer.heads * size for layer in self.layers for size in (layer.key_size, layer.value_size)]
        parts: Iterator[torch.Tensor] = iter(torch.split(rows, widths, dim=-1))
        return tuple(
            (
                keys.view(*keys.shape[:-1], layer.heads, layer.key_size),
                values.view(*values.shape[:-1], layer.heads, layer.value_size),
            )
            for layer, keys, values in zip(self.layers, parts, parts, strict=True)
        )

    def _runs(self) -> list[tuple[LayerShape, int]]:
        """The layers, alike ones in a row counted."""
        runs: list[tuple[LayerShape, int]] = []
        for layer in self.layers:
            if runs and runs[-1][0] == layer:
                runs[-1] = (layer, runs[-1][1] + 1)
            else:
                runs.append((layer, 1))
        return runs


def _sizes(layer: LayerShape) -> str:
    if layer.key_size == layer.value_size:
        return str(layer.key_size)
    return f"{layer.key_size} (keys) and {layer.value_size} (values)"


class Prefix(nn.Module):
    """P keys and P values for every attention layer.

    Without a projection the vectors are the parameters (`vectors`, [P, S]). With one they come out of an MLP
    (equation 3 of the paper, in the shape of PEFT's PrefixEncoder): `embedding` [P, H·Dk] → Linear → Tanh →
    Linear [P, S]. They start at zero; call `init_random` or `init_from`.

    Args:
        shape: what it has to fit.
        length: P.
        projection: the MLP's hidden width; None trains the vectors directly.
    """

    def __init__(self, shape: PrefixShape, length: int, *, projection: int | None = None) -> None:
        super().__init__()
        if type(length) is not int or length < 1:
            raise PrefixError(f"prefix length: got {length!r}; expected a whole number of 1 or more")
        if projection is not None and (type(projection) is not int or projection < 1):
            raise PrefixError(f"projection: got {projection!r}; expected a width of 1 or more, or None")
        self.shape = shape
        self.length = length
        self.projection = projection
        self._kept: tuple[torch.Tensor, float] | None = None
        if projection is None:
            self.vectors = nn.Parameter(torch.zeros(length, shape.size))
        else:
            self.embedding = nn.Embedding(length, shape.token_size)
            self.widen = nn.Linear(shape.token_size, projection)
            self.spread = nn.Linear(projection, shape.size)
            nn.init.zeros_(self.spread.weight)
            nn.init.zeros_(self.spread.bias)

    def key_values(self) -> torch.Tensor:
        """The prefix's numbers, [P, S] (see `PrefixShape.per_layer`); gradients reach the parameters.

        In a block of `keeping` with a choice for each row they are [B, P, S].
        """
        rows: torch.Tensor = self.vectors if self.projection is None else self.spread(self._hidden())
        if self._kept is None:
            return rows
        which, scale = self._kept
        return torch.where(which, rows * scale, torch.zeros((), dtype=rows.dtype, device=rows.device))

    @contextmanager
    def keeping(self, which: torch.Tensor, scale: float) -> Iterator[None]:
        """Inside the block some numbers are 0 and the others are times `scale`, as dropout wants them.

        Args:
            which: True for those that are kept, [P, S]; or [B, P, S] for rows that each see numbers of their own, in passes
                of just these rows.
        """
        self._kept = which, scale
        try:
            yield
        finally:
            self._kept = None

    @torch.no_grad()
    def init_random(
        self, scale: float, generator: torch.Generator, *, value_scale: float | None = None
    ) -> None:
        """Start from random vectors with standard deviation `scale`, the values with `value_scale` where it is given.

        With a projection the MLP is drawn (embedding from N(0, 1), layers uniform, as PEFT does) and its last
        layer scaled so that the vectors have that standard deviation.

        Raises:
            PrefixError: a standard deviation that is not a finite number above 0, or no generator.
        """
        if not isinstance(generator, torch.Generator):
            raise PrefixError(
                f"random start: generator: got {generator!r}; expected a torch.Generator, as torch.Generator().manual_seed(0)"
            )
        for name, number in (("scale", scale), ("value_scale", value_scale)):
            if number is not None and not (isinstance(number, int | float) and 0 < number < math.inf):
                raise PrefixError(f"random start: {name}: got {number!r}; expected a finite number above 0")
        values = 1.0 if value_scale is None else value_scale / scale
        shares = torch.cat(
            [
                torch.full((layer.heads * size,), share)
                for layer in self.shape.layers
                for size, share in ((layer.key_size, 1.0), (layer.value_size, values))
            ]
        )  # [S]
        if self.projection is None:
            self.vectors.normal_(0.0, scale, generator=generator)
            self.vectors.mul_(shares.to(self.vectors.device))
            return
        self._draw_hidden(generator)
        last = self.spread
        nn.init.uniform_(last.weight, -1.0, 1.0, generator=generator)
        nn.init.zeros_(last.bias)
        last.weight.mul_(scale / self.key_values().std())
        last.weight.mul_(shares[:, None].to(last.weight.device))

    @torch.no_grad()
    def init_from(self, key_values: torch.Tensor) -> None:
        """Start exactly from `key_values` [P, S].

        With a projection the MLP's first half is drawn (seed 0) and its last layer solved for in float64.

        Raises:
            PrefixError: another shape, non-finite numbers, or a projection too narrow to yield the vectors.
        """
        expected = (self.length, self.shape.size)
        if key_values.dim() == 2 and len(key_values) != self.length and key_values.shape[1] == expected[1]:
            raise PrefixError(
                f"prefix vectors: got {len(key_values)} positions (of a text: tokens) for a prefix of {self.length}; "
                "expected as many"
            )
        if tuple(key_values.shape) != expected:
            raise PrefixError(
                f"prefix vectors: got shape {list(key_values.shape)}; expected {list(expected)}"
            )
        key_values = key_values.to(
            next(self.parameters()).dtype
        )  # a float64 may be more than a float32 holds
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
        before = {name: parameter.clone() for name, parameter in self.state_dict().items()}
        self._draw_hidden(torch.Generator().manual_seed(0))
        target = key_values.double()
        centre = target.mean(dim=0)
        hidden = self._hidden().double()  # [P, projection]
        last = self.spread
        last.weight.copy_((torch.linalg.pinv(hidden) @ (target - centre)).T)
        last.bias.copy_(centre)
        error = (self.key_values() - key_values).abs().max().item()
        if not error <= 1e-4 * max(1.0, key_values.abs().max().item()):
            self.load_state_dict(before)
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
