"""A PEFT soft prompt on a model, entered where a prefix enters: at the innermost model around all layers.

PEFT's own forward pass makes the logits of all positions, shifts them by the prompt, and takes no padding on the
left; for a classifier on a decoder it hides the token ids by which the classifier finds each row's last token. Here
the prompt's vectors go in front of the text's inside the base, and their hidden states are taken off again behind it,
so the same loss, scoring and generation serve every method. Where PEFT's way is right the logits are equal (tested).

Shape legend: B rows, N tokens, P virtual tokens, H hidden size.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from pipeline.prefix.architecture import anatomy


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
