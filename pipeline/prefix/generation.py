"""Continuing texts behind a prefix.

Shape legend: B rows, N tokens, P prefix positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from pipeline.errors import PrefixError
from pipeline.prefix.architecture import Anatomy, anatomy, check_window
from pipeline.prefix.attention import attach, check_fits, layers_of
from pipeline.prefix.entries import check_free
from pipeline.prefix.tuning import Prefix, PrefixShape


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prefix: Prefix | None,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int],
    pad_token_id: int,
    beams: int = 1,
) -> torch.Tensor:
    """The most likely continuation by greedy or beam search; for an encoder-decoder, the most likely answer.

    The prefix is put into the key/value cache once where the cache takes it (`Anatomy.plain_cache`), and in front of
    what the cache holds at every step where it does not.

    Args:
        model: a causal language model or an encoder-decoder without an attachment, in eval mode.
        prefix: what to put in front; None generates with the base alone.
        input_ids: prompts, padded on the left (for an encoder-decoder on either side), [B, N].
        attention_mask: 1 for real tokens, [B, N].
        max_new_tokens: when to stop at the latest.
        eos_token_id: when to stop (each of them, where there are several).
        pad_token_id: what fills rows that stopped sooner.
        beams: width of the search; 1 is greedy.

    Returns:
        The new tokens only, [B, up to max_new_tokens].

    Raises:
        PrefixError: neither a causal language model nor an encoder-decoder, padding on the right, or
            P + N + max_new_tokens longer than the window.
    """
    found = anatomy(model)
    check_prompts(model, found, input_ids, attention_mask)
    length = 0 if prefix is None else prefix.length
    settings = search(max_new_tokens, beams, eos_token_id=eos_token_id, pad_token_id=pad_token_id)
    check_room(found, length, input_ids.shape[1], max_new_tokens)
    if prefix is None:
        check_free(model, found)
        return continued(model, settings, input_ids, attention_mask)
    if found.column_distances and not bool(attention_mask.all()):
        # Padding would come between the prefix and the text; each row alone has none.
        rows = [
            _behind(model, prefix, settings, row[mask == 1][None], mask[mask == 1][None])[0]
            for row, mask in zip(input_ids, attention_mask, strict=True)
        ]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_token_id)
    return _behind(model, prefix, settings, input_ids, attention_mask)


def _behind(
    model: PreTrainedModel,
    prefix: Prefix,
    settings: GenerationConfig,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
) -> torch.Tensor:
    """The continuations of [B, N] behind `prefix`."""
    found = anatomy(model)
    length = prefix.length
    check_free(model, found)
    check_fits(model, found, PrefixShape(found.layers), prefix)
    if not caches(found, length + input_ids.shape[1] + settings.max_new_tokens):
        with attach(model, prefix):
            return continued(model, settings, input_ids, attention_mask)
    rows = len(input_ids) * settings.num_beams
    cache = DynamicCache()
    for layer, parts in enumerate(layers_of(prefix, model)):
        key, value = (part.transpose(0, 1).expand(rows, -1, -1, -1) for part in parts)
        cache.update(key, value, layer)
    front = input_ids.new_full(
        (len(input_ids), length), settings.pad_token_id
    )  # stands for what the cache holds
    return continued(
        model,
        settings,
        torch.cat([front, input_ids], dim=1),
        torch.cat([torch.ones_like(front), attention_mask], dim=1),
        past_key_values=cache,
    )


def search(
    max_new_tokens: int, beams: int, *, eos_token_id: int | Sequence[int], pad_token_id: int
) -> GenerationConfig:
    """Greedy or beam search, as transformers is told of it.

    Raises:
        PrefixError: a search of no width, for no token, or with nothing to fill rows up with.
    """
    if pad_token_id is None:
        raise PrefixError(
            "generation: pad_token_id: got None; expected the token that fills rows which stopped sooner, as the tokenizer's "
            "eos_token_id"
        )
    if beams < 1 or max_new_tokens < 1:
        raise PrefixError(
            f"generation: got beams = {beams} and max_new_tokens = {max_new_tokens}; expected at least 1 of each"
        )
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        num_beams=beams,
        do_sample=False,
        use_cache=True,  # a model's own setting may be False, as MPT's
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
    )


def check_prompts(
    model: PreTrainedModel, found: Anatomy, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> None:
    """Raise PrefixError where `model` cannot generate now, or prompts and mask are not alike and padded on the left."""
    if model.training:
        raise PrefixError(
            f"{type(model).__name__} is in training mode, with dropout; call model.eval() first"
        )
    for name, given in (("input_ids", input_ids), ("attention_mask", attention_mask)):
        if not isinstance(given, torch.Tensor) or given.dim() != 2 or 0 in given.shape:
            got = (
                f"shape {list(given.shape)}"
                if isinstance(given, torch.Tensor)
                else f"a {type(given).__name__}"
            )
            raise PrefixError(f"generation: {name}: got {got}; expected a tensor [B, N] with a token or more")
    both = found.encoder_decoder
    if not (both or found.causal) or not model.can_generate():
        raise PrefixError(
            f"{type(model).__name__} does not generate; load the base as a causal language model"
        )
    if found.causal and found.padding_offset is not None:
        raise PrefixError(
            f"{type(model).__name__} does not generate: it counts positions from the padding token's number, "
            "and transformers' generation from 0; use a decoder that counts from 0"
        )
    if attention_mask.shape != input_ids.shape:
        raise PrefixError(
            f"generation: got a mask of shape {list(attention_mask.shape)} for prompts of shape "
            f"{list(input_ids.shape)}; expected both alike"
        )
    if not both and not bool(attention_mask[:, -1].all()):
        raise PrefixError(
            "generation: got prompts with padding on the right, where the text would go on; expected it on the left "
            '(padding_side="left")'
        )


def check_room(found: Anatomy, length: int, prompt: int, new: int) -> None:
    """Raise PrefixError where a prefix of `length`, a prompt of so many tokens and `new` ones do not fit the window."""
    check_window(found, length, longest(found, prompt, 0))
    tokens = longest(found, prompt, new)
    taken = length if found.shifts else 0
    if found.window is None or taken + tokens <= found.window:
        return
    if found.encoder_decoder:
        raise PrefixError(
            f"max_new_tokens of {new} and the token that the decoder begins with: more than the {found.window} positions of the "
            "base model; lower max_new_tokens"
        )
    raise PrefixError(
        f"prefix of {taken} + prompt of {prompt} tokens + max_new_tokens of {new}: more than the {found.window} positions of "
        "the base model; lower max_new_tokens, or shorten the prompt or the prefix"
    )


def longest(found: Anatomy, prompt: int, new: int) -> int:
    """The tokens that stand in one row at most: of an encoder-decoder the prompt's, or those of the answer."""
    return max(prompt, 1 + new) if found.encoder_decoder else prompt + new


def fitting(found: Anatomy, prompt: int, new: int, reserved: int) -> int:
    """How many of `new` tokens can be written for a prompt of so many, at least 1.

    Args:
        reserved: positions of the window that are not for tokens. Of an encoder-decoder's there are none.
    """
    if found.window is None:
        return new
    room = found.window - 1 if found.encoder_decoder else found.window - reserved - prompt
    return max(1, min(new, room))


def caches(found: Anatomy, positions: int) -> bool:
    """Whether a prefix may be kept in the key/value cache of so many positions.

    Not where the prefix would slide out of sight, which it never does in training.
    """
    return found.plain_cache and (found.sliding_window is None or positions <= found.sliding_window)


def continued(
    model: Any, settings: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, **cache: Any
) -> torch.Tensor:
    """What `model.generate` writes for prompts [B, N], without them, by `settings` alone.

    What the model's own generation_config adds (a penalty of repetitions, say) would take the places in front that
    stand for the prefix for text.
    """
    own = model.generation_config
    if model.config.is_encoder_decoder:  # what the decoder begins with is no choice: as in training
        settings.decoder_start_token_id = decoder_start(model)
        settings.forced_bos_token_id = own.forced_bos_token_id
    model.generation_config = GenerationConfig()
    try:
        return _written(model, settings, input_ids, attention_mask, **cache)
    finally:
        model.generation_config = own


def decoder_start(model: PreTrainedModel) -> int:
    """The token that an encoder-decoder's decoder begins with.

    Raises:
        PrefixError: neither of the model's configurations names it.
    """
    for config in (model.config, model.generation_config):
        token = getattr(config, "decoder_start_token_id", None)
        if token is not None:
            return int(token)
    raise PrefixError(
        f"{type(model).__name__}: decoder_start_token_id is missing; expected the token that its decoder begins with (of a "
        "multilingual model, the language to write in): set model.config.decoder_start_token_id"
    )


def _written(
    model: Any, settings: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, **cache: Any
) -> torch.Tensor:
    sequences: torch.Tensor = model.generate(
        input_ids=input_ids, attention_mask=attention_mask, generation_config=settings, **cache
    )
    # an encoder-decoder's sequences begin with the token that starts its decoder
    return sequences[:, 1 if model.config.is_encoder_decoder else input_ids.shape[1] :]
