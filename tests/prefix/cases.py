"""The architectures that the engine is tested on, with a head each, and what is compared of their logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from pipeline.prefix.attention import attach
from pipeline.prefix.tuning import Prefix
from tests.prefix import models

TOLERANCE = 1e-5
LENGTH = 5
Kind = Literal["decoder", "encoder", "encoder of tokens", "encoder-decoder"]


@dataclass(frozen=True)
class Case:
    """An architecture with a head."""

    kind: Kind
    family: str

    def __str__(self) -> str:
        return f"{self.family} ({self.kind})"

    def model(self, **more: Any) -> Any:
        if self.kind == "decoder":
            return models.decoder(self.family, **more)
        if self.kind == "encoder-decoder":
            return models.encoder_decoder(self.family, **more)
        task = "Sequence" if self.kind == "encoder" else "Token"
        return models.encoder(self.family, task=task, **more)

    @property
    def both(self) -> bool:
        return self.kind == "encoder-decoder"

    @property
    def by_cache(self) -> bool:
        return self.family.split()[0] in ("GPTJ", "Bloom", "Falcon", "Mpt")

    @property
    def task_type(self) -> str:
        """PEFT's word."""
        words = {"decoder": "CAUSAL_LM", "encoder": "SEQ_CLS", "encoder of tokens": "TOKEN_CLS"}
        return words.get(self.kind, "SEQ_2_SEQ_LM")


CASES = [
    *(Case("decoder", family) for family in models.DECODERS),
    *(Case("encoder", family) for family in [*models.ENCODERS, *models.BEYOND_PEFT]),
    *(Case("encoder of tokens", family) for family in models.TOKEN_CLASSIFIERS),
    *(Case("encoder-decoder", family) for family in models.ENCODER_DECODERS),
]


def batch(case: Case, model: Any, side: str = "right") -> dict[str, torch.Tensor]:
    """Rows of 5, 8 and 9 tokens; for an encoder-decoder with four tokens for the decoder."""
    inputs = models.batch(side=side, pad=model.config.pad_token_id)
    if case.both:
        inputs["decoder_input_ids"] = torch.tensor([[2, 5, 6, 7], [2, 9, 9, 8], [2, 30, 31, 4]])
    return inputs


def alone(inputs: Mapping[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    """One row without its padding or a mask."""
    real = inputs["attention_mask"][row] == 1
    more = (
        {"decoder_input_ids": inputs["decoder_input_ids"][row][None]} if "decoder_input_ids" in inputs else {}
    )
    return {"input_ids": inputs["input_ids"][row][real][None], **more}


def of_row(case: Case, logits: torch.Tensor, mask: torch.Tensor, row: int) -> torch.Tensor:
    """What of the batch's logits is comparable with those of the row alone: not what stands at padding."""
    per_token = case.kind in ("decoder", "encoder of tokens")
    return logits[row][mask[row] == 1] if per_token else logits[row]


def weighed(case: Case, logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A scalar that every comparable logit has its own part in."""
    chosen = [of_row(case, logits, mask, row) for row in range(len(mask))]
    return sum(
        ((part * torch.linspace(-1, 1, part.shape[-1], dtype=part.dtype)).sum() for part in chosen),
        torch.zeros(()),
    )


def prefixed(model: Any, prefix: Prefix, **inputs: torch.Tensor) -> torch.Tensor:
    with attach(model, prefix), torch.no_grad():
        logits: torch.Tensor = model(**inputs).logits
    return logits


def plain(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs).logits
    return logits
