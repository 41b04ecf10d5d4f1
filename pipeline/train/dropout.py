"""Dropout while a prefix is trained (Srivastava et al. 2014): of its own numbers, and of what its head reads.

Li & Liang's code has the first as `prefix_dropout`, transformers the second as `classifier_dropout`. The base drops
nothing: it is frozen, in evaluation mode, and could not adapt to it.

What the prefix drops follows from the seed and the step's number alone and is the same for all rows, which share it;
what the head drops of a row, from the seed, the step and the row's example. So a resumed training drops the same again,
and the pieces of a step, several processes or a fleet drop as one batch does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.prefix.tuning import Prefix

InStep = Callable[[int], AbstractContextManager[None]]
"""Given a step's number (from 1): what is in force while its losses and gradients are computed."""


def nothing(_: int) -> AbstractContextManager[None]:
    """Nothing is dropped in any step."""
    return nullcontext()


@dataclass(frozen=True)
class PrefixDropout:
    """Each of the prefix's keys and values is zero in a step with `probability`, the others are divided by 1 − it.

    With a projection that is what the projection makes of its parameters.

    Attributes:
        seed: of the training.
    """

    probability: float
    seed: int
    prefix: Prefix

    def in_step(self, step: int) -> AbstractContextManager[None]:
        """Inside the block the prefix drops."""
        if not self.probability:
            return nullcontext()
        like = self.prefix.key_values()
        return self.prefix.multiplied(_factors(self.probability, (self.seed, step, 0), like))


@dataclass(frozen=True)
class HeadDropout:
    """Each number that a linear layer of the head reads of a row is zero with `probability`, the others are divided by 1 − it.

    Where the layer reads a state for each token, a row's tokens all drop alike: one of them is its answer.

    Attributes:
        seed: of the training.
        layers: see `head_layers`.
    """

    probability: float
    seed: int
    layers: Sequence[nn.Linear]

    @contextmanager
    def of(self, step: int, examples: torch.Tensor | None) -> Iterator[None]:
        """Inside the block the head drops.

        Args:
            examples: of the rows it is to read, [B]; None where there is no head.
        """
        hooks = []
        for number, layer in enumerate(self.layers if self.probability else (), start=1):
            assert examples is not None, "rows for a head come with their examples"
            width = layer.weight[0]
            rows = [
                _factors(self.probability, (self.seed, step, number, example), width)
                for example in examples.tolist()
            ]
            factors = torch.stack(rows)  # [B, H]

            def dropped(_: nn.Module, args: tuple[Any, ...], factors: torch.Tensor = factors) -> Any:
                states = args[0]  # [B, H] or [B, N, H]
                return (states * (factors if states.dim() == 2 else factors[:, None]), *args[1:])

            hooks.append(layer.register_forward_pre_hook(dropped))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _factors(probability: float, draw: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """Zero or 1 / (1 − probability), of the shape of `like`; `draw` decides which."""
    drawn = np.random.default_rng(draw).random(tuple(like.shape), np.float32)
    kept = torch.from_numpy(drawn >= probability)
    return (kept / (1 - probability)).to(device=like.device, dtype=like.dtype)


def head_layers(model: nn.Module, head: Mapping[str, nn.Parameter]) -> list[nn.Linear]:
    """The linear layers of `model` whose weights are among the parameters of `head`."""
    weights = {id(parameter) for parameter in head.values()}
    return [
        module for module in model.modules() if isinstance(module, nn.Linear) and id(module.weight) in weights
    ]


def step_seed(seed: int, step: int) -> int:
    """Of a step's own draws, for a generator of torch's."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0])
