"""A prefix in models whose attention hands its keys and values to a cache, but not to the AttentionInterface.

BLOOM, Falcon, MPT and GPT-J go on with what the cache's `update` returns. So every layer is given a cache that puts the
prefix in front there, and that says it is P longer than the one behind it: masks, positions and ALiBi's distances
then come out as if P tokens had gone before. It keeps nothing itself, so a layer that gradient checkpointing computes
a second time is given the same; checkpointing takes caches away from layers, which is why each is handed its own.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import Cache, DynamicCache

from pipeline.prefix.architecture import Anatomy
from pipeline.prefix.source import Columns, Source, in_front, widen


class PrefixedCache:
    """A cache with a prefix in front.

    Args:
        source: of the prefix.
        length: P.
        behind: where the tokens' keys and values are kept; None keeps none.
    """

    is_compileable = False

    def __init__(self, source: Source, length: int, behind: Cache | None) -> None:
        self.behind = behind
        self._source = source
        self._length = length
        self._sizes = DynamicCache() if behind is None else behind

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer's keys and values [B, H, N, D], with those kept so far and the prefix in front of them."""
        self._source.seen(layer, key, value)
        if self.behind is not None:
            key, value = self.behind.update(key, value, layer)
        prefix = self._source.given(layer)
        if prefix is None:
            return key, value
        # Laid out as a cache's own: GPT-NeoX-Japanese looks at them as if they were.
        return in_front(prefix[0], key).contiguous(), in_front(prefix[1], value).contiguous()

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions so far, the prefix's among them."""
        return self._length + int(self._sizes.get_seq_length(layer_idx))

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """The position of the next token."""
        return self.get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """How many keys `query_length` more tokens will see at most, and the position of the first."""
        length, offset = self._sizes.get_mask_sizes(query_length, layer_idx)
        return self._length + length, offset


class CacheEntry:
    """The entry into one model: hooks that hand every layer the cache of the pass."""

    def __init__(self, found: Anatomy, source: Source, columns: Columns) -> None:
        self._source, self._columns, self._stack = source, columns, found.base
        self._cache = PrefixedCache(source, columns.length, None)
        self._handles = [
            module.register_forward_pre_hook(partial(self._hand_over, *_argument(module)), with_kwargs=True)
            for module in found.attention
        ]
        self._handles += [stack.register_forward_hook(self._take_back) for stack in found.stacks]

    def undo(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()

    def begin(self, kwargs: dict[str, Any]) -> None:
        """A pass begins: change the stack's arguments for it."""
        cache = kwargs.get("past_key_values")
        if self._recomputes():
            cache, kwargs["use_cache"] = None, False  # a layer computed twice would fill it twice
        if cache is None and kwargs.get("use_cache"):
            cache = DynamicCache()
        self._cache = PrefixedCache(self._source, self._columns.length, cache)
        kwargs["past_key_values"] = self._cache
        mask, visible = kwargs.get("attention_mask"), self._columns.visible
        if mask is None and visible is not None:
            tokens = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
            past = 0 if cache is None else int(cache.get_seq_length())
            mask = torch.ones(len(tokens), past + tokens.shape[1], dtype=torch.long, device=tokens.device)
        if mask is not None and mask.dim() == 2:
            front = mask.new_ones(len(mask), self._columns.length) if visible is None else visible.to(mask)
            kwargs["attention_mask"] = torch.cat([front, mask], dim=1)
        elif mask is not None:
            kwargs["attention_mask"] = widen(mask, self._columns)

    def _take_back(self, stack: nn.Module, args: Any, output: Any) -> Any:
        """The outputs name the cache behind: the next pass, or whoever reorders it, is to have that."""
        if isinstance(output, tuple):
            return tuple(part.behind if isinstance(part, PrefixedCache) else part for part in output)
        if isinstance(output.past_key_values, PrefixedCache):
            output.past_key_values = output.past_key_values.behind
        return output

    def _recomputes(self) -> bool:
        return any(
            module.training and getattr(module, "gradient_checkpointing", False)
            for module in self._stack.modules()
        )

    def _hand_over(
        self, place: int, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Put the pass's cache in the place of the argument `name`, by position where it was given so."""
        if place < len(args):
            return (*args[:place], self._cache, *args[place + 1 :]), kwargs
        return args, {**kwargs, name: self._cache}


def _argument(module: nn.Module) -> tuple[int, str]:
    """Where, and under which name, a module takes its cache."""
    names = list(inspect.signature(module.forward).parameters)
    name = next(name for name in ("layer_past", "past_key_values") if name in names)
    return names.index(name), name
