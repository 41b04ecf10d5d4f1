"""Dropout while a prefix is trained (Srivastava et al. 2014): of its own numbers, and of what its head reads.

Li & Liang's code has the first as `prefix_dropout`, transformers the second as `classifier_dropout`. The base drops
nothing: it is frozen, in evaluation mode, and could not adapt to it.

What is dropped of a row follows from the seed, the step's number and the row's example alone. So a resumed training
drops the same again, and the pieces of a step, several processes or a fleet drop as one batch does. Where rows are no
examples (generation packs several into one row, behind one prefix) the prefix drops the same for all rows of a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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

    With a projection that is what the projection makes of its parameters. Rows that drop by themselves take five bytes for
    each row and number in a pass.

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
        numbers = self.prefix.key_values()  # [P, S]
        draw, shape = (self.seed, step, 0), tuple(numbers.shape)
        if examples is None:
            kept = torch.from_numpy(_kept(self.probability, draw, shape))
        else:
            kept = _kept_of_rows(self.probability, draw, examples, shape)
        return self.prefix.keeping(kept.to(numbers.device), 1 / (1 - self.probability))


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
            draw, width = (self.seed, step, number), layer.weight[0]
            kept = _kept_of_rows(self.probability, draw, examples, tuple(width.shape))
            factors = (kept / (1 - self.probability)).to(width)  # [B, H]

            def dropped(_: nn.Module, args: tuple[Any, ...], factors: torch.Tensor = factors) -> Any:
                states = args[0]  # [B, H] or [B, N, H]
                return (states * (factors if states.dim() == 2 else factors[:, None]), *args[1:])

            hooks.append(layer.register_forward_pre_hook(dropped))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _kept(probability: float, draw: tuple[int, ...], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which of so many numbers are kept, as `draw` decides: of 16 random bits each, `probability` is a share of 65,536."""
    drawn = np.random.default_rng(draw).integers(0, 65_536, shape, np.uint16)
    return drawn >= math.ceil(probability * 65_536)


def _kept_of_rows(
    probability: float, draw: tuple[int, ...], examples: torch.Tensor, shape: tuple[int, ...]
) -> torch.Tensor:
    """[B, …] of the rows with these `examples`, each by its own draw."""
    kept = np.empty((len(examples), *shape), np.bool_)
    for row, example in enumerate(examples.tolist()):
        kept[row] = _kept(probability, (*draw, example), shape)
    return torch.from_numpy(kept)


def head_layers(model: nn.Module, head: Mapping[str, nn.Parameter]) -> list[nn.Linear]:
    """The linear layers of `model` whose weights are among the parameters of `head`."""
    weights = {id(parameter) for parameter in head.values()}
    return [
        module for module in model.modules() if isinstance(module, nn.Linear) and id(module.weight) in weights
    ]


def batch_seed(seed: int, step: int, number: int) -> int:
    """Of the draws of a step's batch `number`, for a generator of torch's."""
    return int(np.random.SeedSequence((seed, step, number)).generate_state(1, np.uint64)[0])
