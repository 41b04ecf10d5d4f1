"""A frozen base's own pass in less memory and time, with the same result.

Three things that a model's forward leaves on the table when only a prefix is trained. None copies a forward: each puts
something around modules that the model calls itself, and a model in which such modules are not found computes in full.

    fused activations   GPT-2's GELU is eight operations, each of which keeps a tensor for the backward pass; torch has
                        it as one
    last layer's rows   what its feed-forward part makes at a position where no target is predicted is never read
    recomputing         a layer keeps nothing but its input, and is computed once more in the backward pass
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from pipeline.errors import PrefixError
from pipeline.prefix.architecture import Anatomy, anatomy


@contextmanager
def lean(model: PreTrainedModel, *, recompute: bool) -> Iterator[None]:
    """Inside the block `model` computes with fused activations, and with `recompute` all layers but the last twice.

    The last layer's backward pass begins where its forward pass ended: to compute it again would save nothing.
    The model may be in evaluation mode, where transformers' own gradient checkpointing does nothing.

    Raises:
        PrefixError: `recompute` for a model whose layers are not found, or in training mode, where dropout would be
            drawn twice.
    """
    instead: dict[nn.Module, Any] = {
        module: partial(nn.functional.gelu, approximate="tanh")
        for module in model.modules()
        if type(module) is NewGELUActivation
    }
    if recompute:
        if model.training:
            raise PrefixError(
                f"{type(model).__name__} is in training mode, where layers computed twice draw dropout twice; call "
                "model.eval() first: a frozen base needs none"
            )
        layers = _layers_to_recompute(model)
        if not layers:
            raise PrefixError(
                f"{type(model).__name__} cannot compute its layers twice: they are not found as one list of modules "
                "of which each is one layer; set training.gradient_checkpointing to false"
            )
        instead |= {
            layer: partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
            for layer in layers
        }
    before = {module: module.__dict__.get("forward") for module in instead}
    for module, forward in instead.items():
        module.__dict__["forward"] = forward
    try:
        yield
    finally:
        for module, forward in before.items():
            del module.__dict__["forward"]
            if forward is not None:
                module.__dict__["forward"] = forward


@contextmanager
def last_layer_at(found: Anatomy, positions: torch.Tensor, tokens: int) -> Iterator[None]:
    """Inside the block the last layer's feed-forward part computes `positions` alone.

    Other positions of the base's output are then not what they would be. A pass over another number of tokens (a soft
    prompt puts some in front) is computed in full.

    Args:
        found: of the model.
        positions: as indices into B·N, each once, [T].
        tokens: B·N.
    """
    hooks = []
    shape: list[torch.Size] = []

    def chosen(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]  # [B, N, hidden]
        shape.clear()
        if hidden.shape[:-1].numel() != tokens:
            return args
        shape.append(hidden.shape)
        return (hidden.flatten(0, -2)[positions][None], *args[1:])

    def put_back(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
        if not shape:
            return output
        every = output.new_zeros(shape[0]).flatten(0, -2)
        return every.index_copy(0, positions, output[0]).view(shape[0])

    for module in _feed_forward(found):
        hooks += [module.register_forward_pre_hook(chosen), module.register_forward_hook(put_back)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _layers_to_recompute(model: PreTrainedModel) -> list[nn.Module]:
    """All but the last of every list of layers with attention in them."""
    attention = set(anatomy(model).attention)
    if len(attention) < len(anatomy(model).attention):
        return []  # ALBERT's modules are several layers each, and would not know which is computed again
    found: list[nn.Module] = []
    within: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and module not in within and attention & set(module.modules()):
            within |= set(module.modules())
            found += list(module)[:-1]
    return found


def _feed_forward(found: Anatomy) -> list[nn.Module]:
    """Of the last layer, the blocks made of nothing but what treats every position for itself.

    A block with parameters of its own (a mixture of experts) may be one too, but does not show it.
    """
    last = _last_layer(found)
    # A layer that will be computed again, after the block, must then do the same.
    if last is None or getattr(last, "gradient_checkpointing", False) or "forward" in last.__dict__:
        return []
    return [
        child
        for child in last.children()
        if found.attention[-1] not in set(child.modules())
        and len(inspect.signature(child.forward).parameters) == 1  # BLOOM's is told what to add, too
        and any(isinstance(part, nn.Linear | Conv1D) for part in child.children())
        and all(_pointwise(part) for part in child.children())
        and not list(child.parameters(recurse=False))
    ]


def _last_layer(found: Anatomy) -> nn.Module | None:
    """The layer that runs last, if it has the last attention module and no other."""
    for module in found.base.modules():
        if isinstance(module, nn.ModuleList) and found.attention[-1] in set(module.modules()):
            inside = set(module[-1].modules())
            alone = [part for part in found.attention if part in inside] == [found.attention[-1]]
            return module[-1] if alone else None
    return None


def _pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D | nn.Dropout) or (
        not list(module.children()) and not list(module.parameters())
    )
