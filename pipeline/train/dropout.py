"""Dropout while a prefix is trained (Srivastava et al. 2014): of its own numbers, and of what its head reads.

Li & Liang's code has the first as `prefix_dropout`, transformers the second as `classifier_dropout`. The base drops
nothing: it is frozen, in evaluation mode, and could not adapt to it.

What is dropped of a row follows from the seed, the step's number and the row's example alone. So a resumed training
drops the same again, and the pieces of a step, several processes or a fleet drop as one batch does. Where rows are no
examples (generation packs several into one row, behind one prefix) the prefix drops the same for all rows of a step.
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

InBatch = Callable[[int, int, torch.Tensor | None], AbstractContextManager[None]]
"""Given a step's number (from 1), a batch's number in it (from 0) and its rows' examples ([B]; None where rows are none):
what is in force while the batch's loss and gradients are computed."""


def nothing(*_: Any) -> AbstractContextManager[None]:
    """Nothing is dropped in any batch."""
    return nullcontext()


@dataclass(frozen=True)
class PrefixDropout:
    """Each of the keys and values that a row sees is zero with `probability`, the others are divided by 1 − it.

    With a projection that is what the projection makes of its parameters.

    Attributes:
        seed: of the training.
    """

    probability: float
    seed: int
    prefix: Prefix

    def of(self, step: int, examples: torch.Tensor | None) -> AbstractContextManager[None]:
        """Inside the block the prefix drops.

        Args:
            examples: of the rows that are to see it, [B]; None drops the same for any rows.
        """
        if not self.probability:
            return nullcontext()
        like = self.prefix.key_values()  # [P, S]
        draw = (self.seed, step, 0)
        if examples is None:
            return self.prefix.multiplied(_factors(self.probability, draw, like))
        rows = [_factors(self.probability, (*draw, example), like) for example in examples.tolist()]
        return self.prefix.multiplied(torch.stack(rows))


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


def batch_seed(seed: int, step: int, number: int) -> int:
    """Of the draws of a step's batch `number`, for a generator of torch's."""
    return int(np.random.SeedSequence((seed, step, number)).generate_state(1, np.uint64)[0])
