"""Which models can carry a prefix, and where in them it goes.

A prefix enters through transformers' AttentionInterface: the one call by which an attention module hands its
finished keys and values over. A model qualifies if every one of its layers has exactly one such module, all
with key/value heads of one size, and if it can be told the positions of its tokens.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn

from torch import nn
from transformers import PreTrainedModel

from pipeline.errors import PrefixError

_WAY_OUT = (
    "use an encoder or decoder whose attention goes through transformers' AttentionInterface (BERT, RoBERTa, "
    "Llama, Qwen3, Gemma 3, GPT-2, ...)"
)


@dataclass(frozen=True)
class Anatomy:
    """What the engine has to know of a model.

    Attributes:
        base: the innermost model around all layers; its forward pass builds the mask and the positions.
        attention: the attention modules, first layer first.
        heads: key/value heads per layer.
        head_size: size of one key or value.
        window: the most positions the model can tell apart; None where nothing limits them.
        sliding_window: the shortest span of tokens a layer sees; None where every layer sees all.
        causal: whether a token sees only what is before it.
        padding_offset: RoBERTa counts real tokens from `padding_idx` + 1; this is `padding_idx`, else None.
    """

    base: PreTrainedModel
    attention: tuple[nn.Module, ...]
    heads: int
    head_size: int
    window: int | None
    sliding_window: int | None
    causal: bool
    padding_offset: int | None


def anatomy(model: PreTrainedModel) -> Anatomy:
    """Look `model` (a transformers PreTrainedModel) over; nothing is computed with it.

    Raises:
        PrefixError: it cannot carry a prefix; the message says why and what can.
    """
    config = model.config
    text_config = config.get_text_config()
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "add_cross_attention", False):
        _refuse(model, "has an encoder and a decoder")
    for key in ("kv_lora_rank", "num_kv_shared_layers"):
        if getattr(text_config, key, None):
            _refuse(model, f"shares or compresses its keys and values ({key} = {getattr(text_config, key)})")
    kinds = set(getattr(text_config, "layer_types", None) or ()) - {
        "full_attention",
        "sliding_attention",
        "chunked_attention",
    }
    if kinds:
        _refuse(model, f"has layers of the kind {', '.join(sorted(kinds))}")

    layers = text_config.num_hidden_layers
    modules: list[nn.Module] = list(model.modules())
    attention = [module for module in modules if calls_the_interface(type(module).forward)]
    if len(attention) != layers:
        _refuse(
            model,
            f"has {layers} layers, of which {len(attention)} have their own attention module that calls the "
            "AttentionInterface",
        )
    attention.sort(key=lambda module: getattr(module, "layer_idx", None) or 0)

    # The innermost model around all layers: OPTForCausalLM goes past OPTModel, straight to its decoder.
    base = [module for module in modules if isinstance(module, PreTrainedModel) and holds(module, attention)][
        -1
    ]
    if "position_ids" not in inspect.signature(base.forward).parameters:
        _refuse(model, "takes no position_ids")

    heads = getattr(text_config, "num_key_value_heads", None) or text_config.num_attention_heads
    head_size = (
        getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    )
    for index, module in enumerate(attention):
        projection = getattr(module, "k_proj", None) or getattr(module, "key", None)
        size = getattr(projection, "out_features", heads * head_size)
        if size != heads * head_size:
            _refuse(
                model, f"has keys of {size} numbers in layer {index} and of {heads * head_size} in its config"
            )

    spans = [
        span
        for key in ("sliding_window", "attention_chunk_size", "local_attention")
        if isinstance(span := getattr(text_config, key, None), int) and span > 0
    ]
    padding_offset = _padding_offset(base)
    window = getattr(text_config, "max_position_embeddings", None)
    if window is not None and padding_offset is not None:
        window -= padding_offset + 1
    return Anatomy(
        base=base,
        attention=tuple(attention),
        heads=heads,
        head_size=head_size,
        window=window,
        sliding_window=min(spans, default=None),
        causal=bool(getattr(attention[0], "is_causal", True)),
        padding_offset=padding_offset,
    )


@cache
def calls_the_interface(forward: Callable[..., Any]) -> bool:
    """Whether a module class's `forward` calls an attention function it got from the AttentionInterface.

    Read off its source, as transformers itself decides whether a model's attention can be exchanged.
    """
    try:
        source = inspect.getsource(forward)
    except OSError:  # defined where no source is, as in an interactive session: not one of transformers'
        return False
    return "ALL_ATTENTION_FUNCTIONS.get_interface(" in source


def holds(module: nn.Module, parts: Sequence[nn.Module]) -> bool:
    """Whether all of `parts` are somewhere within `module`."""
    return set(parts) <= set(module.modules())


def check_window(found: Anatomy, length: int, tokens: int) -> None:
    """Raise PrefixError where a prefix of `length` and `tokens` tokens need more positions than there are.

    Nor may a decoder's prefix alone be longer than what a layer with a sliding window sees: read from a cache, as PEFT
    does, its beginning would be out of sight from the first token on.
    """
    if found.causal and found.sliding_window is not None and length > found.sliding_window:
        raise PrefixError(
            f"prefix of {length} positions; the base model has layers that see {found.sliding_window} (its sliding "
            "window); expected at most as many: shorten the prefix"
        )
    if found.window is not None and length + tokens > found.window:
        raise PrefixError(
            f"prefix of {length} + input of {tokens} tokens = {length + tokens} positions; "
            f"the base model has {found.window}; shorten the prefix or the text"
        )


def _padding_offset(base: PreTrainedModel) -> int | None:
    embeddings: Any = getattr(base, "embeddings", None)
    maker = "create_position_ids_from_input_ids"  # a method in RoBERTa, a function of the file in ESM
    if hasattr(embeddings, maker) or hasattr(sys.modules[type(base).__module__], maker):
        return int(embeddings.padding_idx)
    return None


def _refuse(model: PreTrainedModel, reason: str) -> NoReturn:
    raise PrefixError(f"{type(model).__name__} cannot carry a prefix: it {reason}; {_WAY_OUT}")
