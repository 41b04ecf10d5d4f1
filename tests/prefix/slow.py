"""What a model with a prefix computes, the slow way: the references of the table of architectures.

`by_hand` gives transformers' attention interface a function that computes one query of one head at a time in float64,
over the prefix's keys and then those tokens' that it may see. It knows a row without padding and takes no mask: who
sees whom follows from the layer's own words (causal, sliding window). `by_cache` puts the prefix into the model's own
key/value cache. `by_joint_pass` takes a prefix from a pass over more tokens: whatever their keys and values are, the
rest of the tokens must not notice that the first of them are gone. None uses the engine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache

NAME = "slow_reference"
Parts = list[tuple[torch.Tensor, torch.Tensor]]
"""For each layer the prefix's keys and values, each [P, H, D]."""


def cut(rows: torch.Tensor, shapes: list[tuple[int, int, int]]) -> Parts:
    """[P, S] cut by hand: for each layer of (heads, key size, value size) its keys, then its values."""
    found, start = [], 0
    for heads, key_size, value_size in shapes:
        parts = []
        for size in (key_size, value_size):
            parts.append(rows[:, start : start + heads * size].reshape(len(rows), heads, size))
            start += heads * size
        found.append((parts[0], parts[1]))
    assert start == rows.shape[1]
    return found


@dataclass
class _Pass:
    """The prefix of the pass that runs, and whose turn it is: the layers call in the order of `order`."""

    parts: Parts = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    calls: int = 0

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls += 1
        return self.parts[self.order[self.calls - 1]]


_PASS = _Pass()


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _: Any, **more: Any
) -> tuple[torch.Tensor, None]:
    prefix_key, prefix_value = _PASS.next()
    scaling = more.get("scaling")
    scaling = query.shape[3] ** -0.5 if scaling is None else scaling
    causal = more.get("is_causal")
    causal = bool(getattr(module, "is_causal", True)) if causal is None else causal
    cross = query.shape[2] != key.shape[2]
    span = more.get("sliding_window") or getattr(module, "sliding_window", None)
    bias, sinks, cap = more.get("position_bias"), more.get("s_aux"), more.get("softcap")
    shared = query.shape[1] // key.shape[1]
    rows = []
    for head in range(query.shape[1]):
        group = head // shared
        for i in range(query.shape[2]):
            seen = [
                j
                for j in range(key.shape[2])
                if (not causal or cross or j <= i)
                and (span is None or abs(i - j) < span)  # a layer counts the token itself
            ]
            q = query[0, head, i]
            scores = [q @ k * scaling for k in prefix_key[:, group]]
            for j in seen:
                score = q @ key[0, group, j] * scaling
                scores.append(score if bias is None else score + bias[0, head, i, j])
            if cap is not None:
                scores = [cap * torch.tanh(score / cap) for score in scores]
            if sinks is not None:
                scores.append(sinks[head].to(q.dtype))
            share = torch.stack(scores).softmax(0)
            values = [*prefix_value[:, group], *(value[0, group, j] for j in seen)]
            rows.append(sum(s * v for s, v in zip(share, values, strict=False)))
    out = torch.stack(rows).view(query.shape[1], query.shape[2], -1)  # type: ignore[arg-type]
    return out.transpose(0, 1)[None], None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, lambda **_: None)


@contextmanager
def by_hand(model: Any, parts: Parts, order: list[int] | None = None) -> Iterator[None]:
    """One pass of `model` over one row attends by hand; its attention modules call as the layers in `order`."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    before = {key: config._attn_implementation_internal for key, config in configs.items()}
    _PASS.parts, _PASS.order, _PASS.calls = parts, order or list(range(len(parts))), 0
    for config in configs.values():
        config._attn_implementation_internal = NAME
    try:
        yield
        assert _PASS.calls == len(_PASS.order)
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]


def by_cache(model: Any, parts: Parts, tokens: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
    """Logits of one row [1, N] behind a prefix that is in the model's own cache."""
    cache = DynamicCache()
    for layer, (key, value) in enumerate(parts):
        cache.update(key.transpose(0, 1)[None], value.transpose(0, 1)[None], layer)
    length = len(parts[0][0])
    mask = torch.ones(1, length + tokens.shape[1], dtype=torch.long)
    logits: torch.Tensor = model(
        input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True, **inputs
    ).logits
    return logits


def by_joint_pass(
    model: Any, projections: list[tuple[Any, Any]], first: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The prefix [P, S] that `first` is for `tokens` (each [1, …]), and the last states of the latter.

    `projections` are each layer's key and value projection. Both are of one pass over all tokens.
    """
    kept: list[torch.Tensor] = []
    length = first.shape[1]
    counted: dict[Any, int] = {}

    def keep(module: Any, args: Any, output: torch.Tensor) -> None:
        counted[module] = counted.get(module, 0) + 1
        if counted[module] == 1:  # later calls project distances
            kept.append(output[0, :length])

    handles = [part.register_forward_hook(keep) for pair in projections for part in pair]
    states = model(input_ids=torch.cat([first, tokens], dim=1), output_hidden_states=True).hidden_states[-1]
    for handle in handles:
        handle.remove()
    return torch.cat(kept, dim=1), states[:, length:]


def close(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, in float64; infinite where `b` has no opinion, so that equality would say nothing."""
    return float((a.double() - b.double()).abs().max()) if b.double().std() > 0.05 else math.inf
