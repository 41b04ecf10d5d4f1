"""Dropout while a prefix is trained (Srivastava et al. 2014): of its own numbers, and of what its head reads.

Li & Liang's code has the first as `prefix_dropout`, transformers the second as `classifier_dropout`. The base drops
nothing: it is frozen, in evaluation mode, and could not adapt to it.

What is dropped in a step follows from the seed and the step's number alone, and is the same for all of its rows. So a
resumed training drops the same again, and the pieces of a step, several processes or a fleet drop as one batch does.
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
class Dropout:
    """Each number is zero in a step with `probability`, the others are divided by 1 − `probability`.

    Attributes:
        seed: of the training.
        prefix: whose keys and values are dropped (what a projection makes of its parameters); None for none.
        head: the linear layers whose input is dropped (see `head_layers`).
    """

    probability: float
    seed: int
    prefix: Prefix | None
    head: Sequence[nn.Linear]

    @contextmanager
    def in_step(self, step: int) -> Iterator[None]:
        """Inside the block prefix and head drop."""
        with self.of_prefix(step), self.of_head(step):
            yield

    def of_prefix(self, step: int) -> AbstractContextManager[None]:
        """Inside the block the prefix drops."""
        if self.prefix is None or not self.probability:
            return nullcontext()
        like = self.prefix.key_values()
        return self.prefix.multiplied(self._factors(step, 0, like))

    @contextmanager
    def of_head(self, step: int) -> Iterator[None]:
        """Inside the block the head drops."""
        hooks = []
        for number, layer in enumerate(self.head if self.probability else (), start=1):
            factors = self._factors(step, number, layer.weight[0])

            def dropped(_: nn.Module, args: tuple[Any, ...], factors: torch.Tensor = factors) -> Any:
                return (args[0] * factors, *args[1:])

            hooks.append(layer.register_forward_pre_hook(dropped))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _factors(self, step: int, number: int, like: torch.Tensor) -> torch.Tensor:
        """Zero or 1 / (1 − probability), of the shape of `like`, for the step's tensor `number`."""
        drawn = np.random.default_rng((self.seed, step, number)).random(tuple(like.shape), np.float32)
        kept = torch.from_numpy(drawn >= self.probability)
        return (kept / (1 - self.probability)).to(device=like.device, dtype=like.dtype)


def head_layers(model: nn.Module, head: Mapping[str, nn.Parameter]) -> list[nn.Linear]:
    """The linear layers of `model` whose weights are among the parameters of `head`."""
    weights = {id(parameter) for parameter in head.values()}
    return [
        module for module in model.modules() if isinstance(module, nn.Linear) and id(module.weight) in weights
    ]


def step_seed(seed: int, step: int) -> int:
    """Of a step's own draws, for a generator of torch's."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0])
