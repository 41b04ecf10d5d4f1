"""A PEFT soft prompt on a model, entered where a prefix enters: at the innermost model around all layers.

PEFT's own forward pass makes the logits of all positions, shifts them by the prompt, and takes no padding on the
left; for a classifier on a decoder it hides the token ids by which the classifier finds each row's last token. Here
the prompt's vectors go in front of the text's inside the base, and their hidden states are taken off again behind it,
so the same loss, scoring and generation serve every method. Where PEFT's way is right the logits are equal (tested).

With an encoder-decoder the vectors go in front of the source, and the decoder reads their states with the source's.

Shape legend: B rows, N tokens, P virtual tokens, H hidden size.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from pipeline.prefix.architecture import anatomy


def enter(peft_model: Any) -> None:
    """Let the base of a `peft.PeftModel` with prompt tuning or P-tuning see its vectors, as long as that model lives."""
    if peft_model.get_base_model().config.is_encoder_decoder:
        SourcePrompt(peft_model)
    else:
        SoftPrompt(peft_model)


class SoftPrompt:
    """Attached to the base of a `peft.PeftModel` for as long as that model lives.

    Args:
        peft_model: with prompt tuning or P-tuning; its prompt encoder makes the vectors, [P, H].
    """

    def __init__(self, peft_model: Any) -> None:
        found = anatomy(peft_model.get_base_model())
        self.length = int(peft_model.active_peft_config.num_virtual_tokens)
        self._peft, self._causal = peft_model, found.causal
        self._words = found.base.get_input_embeddings()
        self._parameters = inspect.signature(found.base.forward).parameters
        self._in_front = False
        found.base.register_forward_pre_hook(self._before, with_kwargs=True)
        found.base.register_forward_hook(self._after)

    def _before(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        kwargs = {**dict(zip(self._parameters, args, strict=False)), **kwargs}
        tokens = kwargs.get("input_ids")
        if tokens is None:  # what comes after the layers is run alone (`pipeline.prefix.target_loss`)
            return (), kwargs
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = tokens.new_ones(len(tokens), max(past - self.length, 0) + tokens.shape[1])
        mask = torch.cat([mask.new_ones(len(mask), self.length), mask], dim=1)  # [B, P + N]
        kwargs["attention_mask"] = mask
        if self._causal:
            # Padding on the left stands between prompt and text, and counts for nothing.
            positions = (mask.long().cumsum(1) - 1).clamp_(min=0)
            kwargs["position_ids"] = positions[:, past:]
        if past:  # the prompt is in the cache
            return (), kwargs
        prompt = self._peft.get_prompt(batch_size=len(tokens))  # [B, P, H]
        words = self._words(tokens)
        kwargs["input_ids"] = None
        kwargs["inputs_embeds"] = torch.cat([prompt.to(words.dtype), words], dim=1)
        self._in_front = True
        return (), kwargs

    def _after(self, module: Any, args: tuple[Any, ...], output: Any) -> Any:
        if self._in_front:
            output["last_hidden_state"] = output["last_hidden_state"][:, self.length :]
            self._in_front = False
        return output


class SourcePrompt:
    """A soft prompt in front of an encoder-decoder's source, as long as the `peft.PeftModel` lives.

    Args:
        peft_model: with prompt tuning or P-tuning; its prompt encoder makes the vectors, [P, H].
    """

    def __init__(self, peft_model: Any) -> None:
        encoder, decoder = anatomy(peft_model.get_base_model()).stacks
        self.length = int(peft_model.active_peft_config.num_virtual_tokens)
        self._peft, self._words = peft_model, encoder.get_input_embeddings()
        self._read, self._written = (
            inspect.signature(stack.forward).parameters for stack in (encoder, decoder)
        )
        encoder.register_forward_pre_hook(self._before_encoder, with_kwargs=True)
        decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True)

    def _before_encoder(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        kwargs = {**dict(zip(self._read, args, strict=False)), **kwargs}
        tokens = kwargs["input_ids"]
        words = self._words(tokens)
        prompt = self._peft.get_prompt(batch_size=len(tokens))  # [B, P, H]
        kwargs["input_ids"] = None
        kwargs["inputs_embeds"] = torch.cat([prompt.to(words.dtype), words], dim=1)
        if kwargs.get("attention_mask") is not None:
            kwargs["attention_mask"] = self._widened(kwargs["attention_mask"])
        return (), kwargs

    def _before_decoder(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        kwargs = {**dict(zip(self._written, args, strict=False)), **kwargs}
        if kwargs.get("encoder_attention_mask") is not None:  # the source's own
            kwargs["encoder_attention_mask"] = self._widened(kwargs["encoder_attention_mask"])
        return (), kwargs

    def _widened(self, mask: torch.Tensor) -> torch.Tensor:
        """[B, N] → [B, P + N]."""
        return torch.cat([mask.new_ones(len(mask), self.length), mask], dim=1)
