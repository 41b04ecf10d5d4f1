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
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from pipeline.errors import PrefixError
from pipeline.prefix.architecture import Anatomy

PREFIX_ATTENTION = "prefixline"
"""The name under which the attention and the mask function are registered with transformers."""

_SLOT = "_prefixline_slot"
_MASK = "_prefixline_mask"

AttentionFunction = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


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
    """What a slot asks for its layer's keys and values."""

    def seen(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The prefix of `layer`, each [P, H, D], or [B, P, H, D] where rows have their own; or None.

        `key` and `value` [B, H, N, D] are the layer's own.
        """


class _Slot:
    """A module's place in an attachment. Not an nn.Module: it must not join the model's parameters."""

    def __init__(self, source: Source, layer: int, columns: Columns, attention: AttentionFunction) -> None:
        self.source = source
        self.layer = layer
        self.columns = columns
        self.attention = attention


def switch(model: PreTrainedModel, found: Anatomy, source: Source, columns: Columns) -> Callable[[], None]:
    """Give every attention module its slot and every module a private config; returns what undoes it."""
    if any(_SLOT in module.__dict__ for module in found.attention):
        raise PrefixError(f"{type(model).__name__} already has a prefix attached; detach it first")
    implementation = attention_implementation(found.base)
    if implementation not in ("sdpa", "eager"):
        raise PrefixError(
            f"attention implementation: got {implementation!r}; expected 'sdpa' or 'eager'; "
            'load the model with attn_implementation="sdpa"'
        )
    slots = [
        _Slot(
            source, layer, columns, sdpa_attention_forward if implementation == "sdpa" else _eager_of(module)
        )
        for layer, module in enumerate(found.attention)
    ]
    originals = {module: module.config for module in model.modules() if "config" in module.__dict__}
    copies: dict[int, Any] = {}  # one memo for all, so that configs shared within the model stay shared
    for module, config in originals.items():
        private = copy.deepcopy(config, copies)
        private._attn_implementation_internal = PREFIX_ATTENTION
        setattr(private, _MASK, (implementation, columns))
        module.__dict__["config"] = private
    for module, slot in zip(found.attention, slots, strict=True):
        module.__dict__[_SLOT] = slot

    def undo() -> None:
        for module in found.attention:
            del module.__dict__[_SLOT]
        for module, config in originals.items():
            module.__dict__["config"] = config

    return undo


def attention_implementation(model: PreTrainedModel) -> str:
    """The implementation of `model`'s attention: sdpa, eager, …; with a prefix attached, the one behind it."""
    implementation, _ = getattr(model.config, _MASK, (None, None))
    return str(implementation or model.config._attn_implementation or "eager")


def _eager_of(module: nn.Module) -> AttentionFunction:
    """The eager attention of the file that defines `module`'s class, which is what its forward falls back on."""
    function: AttentionFunction = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
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
    seen = slot.source.seen(slot.layer, key, value)
    if seen is None:
        return slot.attention(module, query, key, value, attention_mask, **kwargs)
    columns, tokens = slot.columns, key.shape[2]
    if attention_mask is None:
        causal = kwargs.get("is_causal")
        if causal is None:
            causal = getattr(module, "is_causal", True)
        if causal and query.shape[2] > 1:
            # sdpa's own causal mask is aligned to the upper left and would hide the prefix's successors
            visible = torch.ones(query.shape[2], tokens, dtype=torch.bool, device=query.device)
            attention_mask = _widen(visible.tril_(tokens - query.shape[2])[None, None], columns)
        elif columns.visible is not None:
            attention_mask = _widen(query.new_zeros(1, 1, 1, tokens), columns)
    elif attention_mask.shape[-1] == tokens:  # made by the caller, or by the model itself
        attention_mask = _widen(attention_mask, columns)
    return slot.attention(
        module, query, _in_front(seen[0], key), _in_front(seen[1], value), attention_mask, **kwargs
    )


def _in_front(prefix: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """[P, H, D] or [B, P, H, D] before [B, H, N, D] → [B, H, P + N, D].

    Joined as [B, P + N, H, D]: that is how the projections left the tokens in memory, so each row is one copy.
    """
    rows = tokens.transpose(1, 2)
    return torch.cat([prefix.expand(len(rows), -1, -1, -1), rows], dim=1).transpose(1, 2)


def _mask(*, config: Any, **kwargs: Any) -> torch.Tensor | None:
    """The registered mask function: the wrapped implementation's mask with the prefix's columns in front."""
    implementation, columns = getattr(config, _MASK)
    if columns.length and kwargs["q_length"] > 1:
        # the shortcut knows no prefix, nor the empty places of a cache behind one
        kwargs["allow_is_causal_skip"] = False
    if columns.visible is not None:  # there is something to hide, whatever the tokens are
        kwargs["allow_is_causal_skip"] = kwargs["allow_is_bidirectional_skip"] = False
    mask = (sdpa_mask if implementation == "sdpa" else eager_mask)(config=config, **kwargs)
    return None if mask is None else _widen(mask, columns)


def _widen(mask: torch.Tensor, columns: Columns) -> torch.Tensor:
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


AttentionInterface.register(PREFIX_ATTENTION, _attention)
AttentionMaskInterface.register(PREFIX_ATTENTION, _mask)
