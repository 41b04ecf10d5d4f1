"""A classification head on the mean of the tokens' states, for any backbone.

transformers' own heads read one token: BERT's pooler the first, a decoder's the last. Sentence encoders were trained to be
read by the mean of all (Reimers & Gurevych 2019, section 3: "MEAN-strategy"); benchmarks/RESULTS.md has one read both ways.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class MeanPooledForSequenceClassification(PreTrainedModel):  # type: ignore[misc]
    """A backbone and one linear layer on the mean of its last states.

    The layer is called otherwise than the heads of transformers, so that neither is ever taken for the other. A pooler of
    the backbone, which nothing would read, is taken out of it.
    """

    base_model_prefix = "backbone"
    head_pooling = "mean"
    _supports_sdpa = True  # or eager: whichever the backbone has settled on

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__(backbone.config)
        if getattr(backbone, "pooler", None) is not None:
            backbone.pooler = None
        self.backbone = backbone
        config = backbone.config.get_text_config()
        # OPT's states come out as wide as its words.
        width = getattr(config, "word_embed_proj_dim", None) or config.hidden_size
        self.mean_classifier = nn.Linear(width, backbone.config.num_labels)

    def get_correct_experts_implementation(self, requested: str | None) -> str | None:
        """Whatever the backbone, which has the experts, has settled on."""
        return requested

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Logits [B, labels] of tokens [B, N], or of `inputs_embeds` [B, N, hidden]; padding does not count, nor a cache.

        With `labels` [B] their cross-entropy, too, averaged over the rows. A row without tokens has no mean: its logits are NaN.
        """
        kwargs["return_dict"] = True
        states = self.backbone(
            input_ids=input_ids, attention_mask=attention_mask, **kwargs
        ).last_hidden_state  # [B, N, hidden]
        if attention_mask is None:
            mean = states.mean(1)
        else:
            mean = mean_of_tokens(states, attention_mask[:, -states.shape[1] :])
        logits = self.mean_classifier(mean)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def mean_of_tokens(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[B, hidden]: of each row's `states` [B, N, hidden] the mean of those whose `mask` [B, N] is not 0."""
    return (states * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
