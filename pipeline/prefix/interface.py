"""The functions registered with transformers' AttentionInterface, and switching a model to them.

The attention function puts a module's prefix keys and values in front of the layer's own and calls the
implementation the model had (sdpa or eager); the mask function adds P columns: every token sees them all, or, where
rows have prefixes of their own, those of its row.

Nothing is shared between models: what a module needs is in a slot on that module, and a config, which
transformers shares between every model built from it, is replaced by a private copy while the slots are there.

Shape legend: B rows, N tokens, H key/value heads, P prefix positions, D numbers per head.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from pipeline.errors import PrefixError
from pipeline.prefix.architecture import Anatomy
from pipeline.prefix.source import Columns, Source, in_front, widen

PREFIX_ATTENTION = "prefixline"
"""The name under which the attention and the mask function are registered with transformers."""

_SLOT = "_prefixline_slot"

AttentionFunction = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


class _Ours(str):
    """Our implementation's name as a private config has it, with the one behind ours and the columns of its masks.

    It is where transformers keeps the name, because that is what it leaves out of a config that is saved.
    """

    behind: str
    columns: Columns


class _Slot:
    """A module's place in an attachment. Not an nn.Module: it must not join the model's parameters."""

    def __init__(self, source: Source, columns: Columns, attention: AttentionFunction) -> None:
        self.source = source
        self.columns = columns
        self.attention = attention
        self.layers: list[int] = []
        """Which layers the module is, in the order of their turns: more than one where layers share it."""
        self.turn = 0

    def next_layer(self) -> int:
        layer = self.layers[self.turn]
        self.turn = (self.turn + 1) % len(self.layers)
        return layer


class InterfaceEntry:
    """The entry into one model: every attention module has its slot, and every module a private config.

    Raises:
        PrefixError: the model's attention is neither sdpa nor eager.
    """

    def __init__(self, model: PreTrainedModel, found: Anatomy, source: Source, columns: Columns) -> None:
        implementation = attention_implementation(found.base)
        if implementation not in ("sdpa", "eager"):
            raise PrefixError(
                f"attention implementation: got {implementation!r}; expected 'sdpa' or 'eager'; "
                'load the model with attn_implementation="sdpa"'
            )
        self._slots: dict[nn.Module, _Slot] = {}
        for layer, module in enumerate(found.attention):
            if module not in self._slots:
                attention = sdpa_attention_forward if implementation == "sdpa" else _eager_of(module)
                self._slots[module] = _Slot(source, columns, attention)
            self._slots[module].layers.append(layer)
        self._configs = {module: module.config for module in model.modules() if "config" in module.__dict__}
        copies: dict[int, Any] = {}  # one memo for all, so that configs shared within the model stay shared
        for module, config in self._configs.items():
            private = copy.deepcopy(config, copies)
            ours = _Ours(PREFIX_ATTENTION)
            ours.behind, ours.columns = implementation, columns
            private._attn_implementation_internal = ours
            module.__dict__["config"] = private
        for module, slot in self._slots.items():
            module.__dict__[_SLOT] = slot

    def begin(self, kwargs: dict[str, Any]) -> None:
        """A pass begins: modules that several layers share are the first of them again."""
        for slot in self._slots.values():
            slot.turn = 0

    def undo(self) -> None:
        """Leave the model as it was."""
        for module in self._slots:
            del module.__dict__[_SLOT]
        for module, config in self._configs.items():
            module.__dict__["config"] = config


def attention_implementation(model: PreTrainedModel) -> str:
    """The implementation of `model`'s attention: sdpa, eager, …; with a prefix attached, the one behind it."""
    found = model.config._attn_implementation or "eager"
    return found.behind if isinstance(found, _Ours) else str(found)


def _eager_of(module: nn.Module) -> AttentionFunction:
    """The eager attention of the file that defines `module`'s forward, which is what that falls back on."""
    function: AttentionFunction = type(module).forward.__globals__["eager_attention_forward"]
    return function


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The registered attention function: query [B, heads, N, D], key and value [B, H, N', D]."""
    slot: _Slot = module.__dict__[_SLOT]
    layer = slot.next_layer()
    slot.source.seen(layer, key, value)
    prefix = slot.source.given(layer)
    if prefix is None:
        return slot.attention(module, query, key, value, attention_mask, **kwargs)
    columns, tokens = slot.columns, key.shape[2]
    if kwargs.get("position_bias") is not None:  # T5's, which tells distances: the prefix has none
        kwargs["position_bias"] = nn.functional.pad(kwargs["position_bias"], (columns.length, 0))
    if attention_mask is None:
        causal = kwargs.get("is_causal")
        if causal is None:
            causal = getattr(module, "is_causal", True)
        if causal and query.shape[2] > 1:
            # sdpa's own causal mask is aligned to the upper left and would hide the prefix's successors
            visible = torch.ones(query.shape[2], tokens, dtype=torch.bool, device=query.device)
            attention_mask = widen(visible.tril_(tokens - query.shape[2])[None, None], columns)
        elif columns.visible is not None:
            attention_mask = widen(query.new_zeros(1, 1, 1, tokens), columns)
    elif attention_mask.shape[-1] == tokens:  # made by the caller, or by the model itself
        attention_mask = widen(attention_mask, columns)
    return slot.attention(
        module, query, in_front(prefix[0], key), in_front(prefix[1], value), attention_mask, **kwargs
    )


def _mask(*, config: Any, **kwargs: Any) -> torch.Tensor | None:
    """The registered mask function: the wrapped implementation's mask with the prefix's columns in front."""
    ours: _Ours = config._attn_implementation
    columns = ours.columns
    if columns.length and kwargs["q_length"] > 1:
        # the shortcut knows no prefix, nor the empty places of a cache behind one
        kwargs["allow_is_causal_skip"] = False
    if columns.visible is not None:  # there is something to hide, whatever the tokens are
        kwargs["allow_is_causal_skip"] = kwargs["allow_is_bidirectional_skip"] = False
    mask = (sdpa_mask if ours.behind == "sdpa" else eager_mask)(config=config, **kwargs)
    return None if mask is None else widen(mask, columns)


AttentionInterface.register(PREFIX_ATTENTION, _attention)
AttentionMaskInterface.register(PREFIX_ATTENTION, _mask)
