"""Tiny random models of many architectures, built from configs, and PEFT's answer for the same prefix."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from peft import PrefixTuningConfig, get_peft_model

from pipeline.prefix.tuning import Prefix, PrefixShape

SMALL: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
WIDE: dict[str, Any] = {"initializer_range": 0.3}  # the usual 0.02 leaves a tiny model without an opinion

DECODERS: dict[str, dict[str, Any]] = {
    "Llama": {"num_key_value_heads": 2},
    "Mistral": {"num_key_value_heads": 2, "sliding_window": None},
    "Qwen2": {"num_key_value_heads": 2},
    "Qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "Gemma3": {"num_key_value_heads": 1, "head_dim": 16, "sliding_window": 32},
    "GPT2": {"n_positions": 64},
    "GPTNeoX": {},
    "Phi": {"num_key_value_heads": 4},
    "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "StableLm": {"num_key_value_heads": 2},
}
ENCODERS: dict[str, dict[str, Any]] = {
    "Bert": {},
    "Roberta": {"pad_token_id": 1},
    "XLMRoberta": {"pad_token_id": 1},
    "Electra": {"embedding_size": 32},
    "Camembert": {"pad_token_id": 1},
}
BEYOND_PEFT: dict[str, dict[str, Any]] = {  # encoders in which PEFT's prefix tuning fails
    "DistilBert": {"dim": 32, "n_heads": 4, "n_layers": 3, "hidden_dim": 48},
    "ModernBert": {"local_attention": 16, "global_attn_every_n_layers": 2},
    "NomicBert": {},
    "Esm": {"pad_token_id": 1, "mask_token_id": 2},
}
REFUSED: dict[str, dict[str, Any]] = {
    "Bloom": {},
    "Falcon": {},
    "Mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},
    "GPTJ": {"n_embd": 32, "n_head": 4, "n_layer": 2, "rotary_dim": 4, "n_positions": 64},
    "DebertaV2": {},
    "DeepseekV3": {
        "num_key_value_heads": 4,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 8,
    },
    "Mamba": {},
    "Qwen3Next": {
        "num_key_value_heads": 2,
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "num_experts": 4,
        "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 8,
    },
    "Albert": {"embedding_size": 16},
    "T5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    "Bart": {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
    },
}


def config_of(family: str, extra: dict[str, Any], **more: Any) -> Any:
    names = {"Gemma3": "Gemma3TextConfig", "GPTNeoX": "GPTNeoXConfig", "XLMRoberta": "XLMRobertaConfig"}
    kind = getattr(transformers, names.get(family, f"{family}Config"))
    return kind(**{**SMALL, "pad_token_id": 0, **extra, **more})


def decoder(family: str = "Llama", *, seed: int = 0, **more: Any) -> Any:
    """A causal language model, frozen, in eval mode."""
    config = config_of(family, {**DECODERS[family], **WIDE}, **more)
    name = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    return _frozen(getattr(transformers, name), config, seed)


def encoder(family: str = "Bert", *, seed: int = 0, labels: int = 5, **more: Any) -> Any:
    """A sequence classifier, frozen, in eval mode."""
    config = config_of(family, {**(ENCODERS | BEYOND_PEFT)[family], **WIDE}, num_labels=labels, **more)
    return _frozen(getattr(transformers, f"{family}ForSequenceClassification"), config, seed)


def _frozen(kind: Any, config: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    return kind(config).eval().requires_grad_(False)


def random_prefix(model: Any, length: int = 5, *, seed: int = 1, scale: float = 1.0) -> Prefix:
    prefix = Prefix(PrefixShape.of_model(model), length)
    prefix.init_random(scale, torch.Generator().manual_seed(seed))
    return prefix


def stacked(prefix: Prefix) -> Any:
    """Layers that are all alike as one array, [L, 2, H, P, D]."""
    parts = [torch.stack(layer) for layer in prefix.shape.per_layer(prefix.key_values().detach())]
    return torch.stack(parts).transpose(2, 3).double().numpy()


def least(shape: PrefixShape, rows: torch.Tensor) -> float:
    """Of the largest number in each layer's keys and in its values, the smallest: 0 where one has nothing."""
    return min(part.abs().max().item() for layer in shape.per_layer(rows) for part in layer)


def batch(
    rows: int = 3, tokens: int = 9, *, side: str = "right", pad: int = 0, seed: int = 2
) -> dict[str, torch.Tensor]:
    """Random tokens; row 0 has four of padding on `side`, row 1 has one, the others none."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(4, 60, (rows, tokens), generator=generator)
    mask = torch.ones_like(input_ids)
    for row, missing in ((0, 4), (1, 1)):
        where = slice(tokens - missing, None) if side == "right" else slice(None, missing)
        mask[row, where] = 0
    return {"input_ids": input_ids.masked_fill(mask == 0, pad), "attention_mask": mask}


def in_peft(model: Any, prefix: Prefix, task_type: str) -> Any:
    """A copy of `model` with `prefix` in PEFT: the reference."""
    config = PrefixTuningConfig(task_type=task_type, num_virtual_tokens=prefix.length)
    reference = get_peft_model(copy.deepcopy(model), config).eval()
    with torch.no_grad():
        reference.prompt_encoder.default.embedding.weight.copy_(prefix.key_values())
    return reference
