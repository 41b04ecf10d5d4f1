from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from pipeline.prefix.attention import attach
from pipeline.prefix.packing import PackedRows
from pipeline.prefix.tuning import Prefix, PrefixShape
from pipeline.train.batches import ClassificationRows, GenerationRows
from pipeline.train.losses import batch_loss

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
PROMPTS = [[1, 5, 9], [1, 7], [1, 3, 4, 2]]
TARGETS = [[[8, 6, 2], [9, 2]], [[4, 2]], [[5, 6, 7, 8, 2], [3, 2], [2]]]


def decoder(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(vocab_size=20, num_key_value_heads=1, **SMALL)).eval()
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2)).eval()
    config = Gemma2Config(
        vocab_size=20, num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.05, **SMALL
    )
    return Gemma2ForCausalLM(config).eval()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_the_generation_loss_is_transformers_own_over_each_reference_summed(kind: str, packed: bool) -> None:
    """Gemma 2 caps its logits after the head, which must not be lost with the gathered positions."""
    model = decoder(kind)
    data = datasets.Dataset.from_dict({"input_ids": PROMPTS, "target_ids": TARGETS})
    rows = GenerationRows(data, pad=0, model=model if packed else None)
    expected, tokens = 0.0, 0
    for prompt, targets in zip(PROMPTS, TARGETS, strict=True):
        for target in targets:
            ids = torch.tensor([prompt + target])
            labels = torch.tensor([[-100] * len(prompt) + target])
            expected += model(input_ids=ids, labels=labels).loss.item() * len(target)
            tokens += len(target)
    for pieces in (1, 3):
        batches = rows.batches(np.arange(3), pieces)
        assert all(isinstance(batch, PackedRows) is packed for batch in batches)
        found = [batch_loss(model, batch) for batch in batches]
        assert sum(piece.total.item() for piece in found) == pytest.approx(expected, rel=1e-5)
        assert sum(piece.targets for piece in found) == tokens == 15
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_only_target_positions_reach_the_output_head() -> None:
    model = decoder("llama")
    rows = GenerationRows(datasets.Dataset.from_dict({"input_ids": PROMPTS, "target_ids": TARGETS}), pad=0)
    seen: list[torch.Size] = []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    (batch,) = rows.batches(np.arange(3), 1)
    batch_loss(model, batch)
    assert seen == [torch.Size([1, 15, 20])]


def test_the_classification_loss_is_transformers_own_times_the_rows() -> None:
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=20, num_labels=3, **SMALL)).eval()
    rows = ClassificationRows(
        datasets.Dataset.from_dict({"input_ids": [[1, 2, 3], [4], [5, 6]], "label": [0, 2, 1]}), pad=0
    )
    (batch,) = rows.batches(np.arange(3), 1)
    found = batch_loss(model, batch)
    with torch.no_grad():
        output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.targets)
    assert found.total.item() == pytest.approx(3 * output.loss.item(), rel=1e-6)
    assert found.right == int((output.logits.argmax(-1) == batch.targets).sum())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_in_bfloat16_the_loss_is_nearly_the_same_and_its_gradient_float32(kind: str) -> None:
    model = decoder(kind).requires_grad_(False)
    data = datasets.Dataset.from_dict({"input_ids": PROMPTS, "target_ids": TARGETS})
    (batch,) = GenerationRows(data, pad=0, model=model).batches(np.arange(3), 1)
    prefix = Prefix(PrefixShape.of_model(model), 3)
    prefix.init_random(0.5, torch.Generator().manual_seed(0))
    found = []
    for dtype in ("float32", "bfloat16"):
        prefix.zero_grad()
        with attach(model, prefix):
            loss = batch_loss(model, batch, dtype).total
            loss.backward()
        found.append((loss.item(), prefix.vectors.grad))
    (expected, gradient), (rough, nearly) = found
    assert nearly.dtype == loss.dtype == torch.float32
    assert rough != expected
    assert rough == pytest.approx(expected, rel=1e-2)
    assert torch.nn.functional.cosine_similarity(nearly.flatten(), gradient.flatten(), dim=0) > 0.99
