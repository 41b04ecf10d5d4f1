"""Tiny random models of every architecture, built from configs, and PEFT's answer for the same prefix."""

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

_FALCON: dict[str, Any] = {"class": "Falcon"}
_ROUTED: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
DECODERS: dict[str, dict[str, Any]] = {
    "Llama": {"num_key_value_heads": 2},
    "Mistral": {"num_key_value_heads": 2, "sliding_window": 32},
    "Qwen2": {"num_key_value_heads": 2},
    "Qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "Qwen3Moe": {"num_key_value_heads": 2, "head_dim": 8, **_ROUTED},
    "Gemma2": {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 32, "query_pre_attn_scalar": 16},
    "Gemma3": {"num_key_value_heads": 1, "head_dim": 16, "sliding_window": 32},
    "GPT2": {"n_positions": 64},
    "GPTNeoX": {},
    "Phi": {"num_key_value_heads": 4},
    "Phi3": {
        "num_key_value_heads": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "original_max_position_embeddings": 64,
    },
    "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "StableLm": {"num_key_value_heads": 2},
    "GptOss": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 32,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    },
    "DeepseekV3": {
        "num_key_value_heads": 4,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 6,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 8,
    },
    "Qwen3Next": {
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "shared_expert_intermediate_size": 8,
        **_ROUTED,
    },
    "Lfm2": {
        "num_hidden_layers": 4,
        "layer_types": ["conv", "full_attention"] * 2,
        "num_key_value_heads": 2,
        "block_ff_dim": 48,
    },
    "GPTJ": {"n_embd": 32, "n_head": 4, "n_layer": 3, "rotary_dim": 4, "n_positions": 64},
    "Bloom": {"max_position_embeddings": None},
    "Falcon": {**_FALCON, "multi_query": True, "new_decoder_architecture": False},
    "Falcon grouped": {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    "Falcon ALiBi": {**_FALCON, "alibi": True, "multi_query": True},
    "Mpt": {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 64},
}
_KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
WINDOW = 7  # fewer tokens than a row of `batch` has
WINDOWED: dict[str, dict[str, Any]] = {
    f"{family}, window of {WINDOW}": {"class": family, **DECODERS[family], "sliding_window": WINDOW, **more}
    for family, more in {
        "Mistral": {},
        "Gemma2": {},
        "Gemma3": {"layer_types": _KINDS},
        "GptOss": {"layer_types": _KINDS},
    }.items()
}
DECODERS |= WINDOWED
PACKED = (  # those that are packed, under sdpa as well as eager attention
    "Llama", "Mistral", "Qwen2", "Qwen3", "Gemma3", "GPT2", "GPTNeoX", "Phi", "OPT", "StableLm",
)  # fmt: skip
ENCODERS: dict[str, dict[str, Any]] = {
    "Bert": {},
    "Roberta": {"pad_token_id": 1},
    "XLMRoberta": {"pad_token_id": 1},
    "Electra": {"embedding_size": 32},
    "Camembert": {"pad_token_id": 1},
}
BEYOND_PEFT: dict[str, dict[str, Any]] = {  # encoders in which PEFT's prefix tuning fails
    "DistilBert": {"dim": 32, "n_heads": 4, "n_layers": 3, "hidden_dim": 48},
    "Albert": {"embedding_size": 16, "num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2},
    "ModernBert": {"local_attention": 16, "global_attn_every_n_layers": 2},
    "ModernBert, window of 4": {
        "class": "ModernBert",
        "local_attention": 8,  # four on either side: fewer than a row of `batch` has, and than the prefix
        "global_attn_every_n_layers": 2,
    },
    "NomicBert": {},
    "Esm": {"pad_token_id": 1, "mask_token_id": 2},
    "DebertaV2": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "position_buckets": 16,
        "share_att_key": True,
        "pooler_hidden_size": 32,
    },
}
TOKEN_CLASSIFIERS = (
    "Bert", "Roberta", "Electra", "DistilBert", "Albert", "ModernBert", "ModernBert, window of 4", "DebertaV2",
)  # fmt: skip
_BART: dict[str, Any] = {
    "class": "Bart",
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "decoder_start_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_T5: dict[str, Any] = {
    "class": "T5",
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "initializer_factor": 1.5,
}
ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "T5": _T5,
    "T5 unequal": {**_T5, "d_kv": 6, "num_layers": 3, "num_decoder_layers": 2},
    "Bart": _BART,
    "Bart unequal": {**_BART, "decoder_attention_heads": 2},
}
REFUSED: dict[str, dict[str, Any]] = {
    "Mamba": {},
    "Rwkv": {"attention_hidden_size": 32},
    "Gemma3n": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_kv_shared_layers": 1,
        "vocab_size_per_layer_input": 60,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
        "layer_types": ["full_attention"] * 3,
        "activation_sparsity_pattern": [0.0] * 3,
    },
    "CpmAnt": {"dim_head": 8, "dim_ff": 48, "prompt_length": 4, "prompt_types": 2},
    "FalconH1": {"num_key_value_heads": 2, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8},
    "Mllama": {"num_key_value_heads": 2, "num_hidden_layers": 4, "cross_attention_layers": [1]},
    "Deberta": {},
    "DiffLlama": {"num_key_value_heads": 2},
    "Doge": {"num_key_value_heads": 2},
    "SwitchTransformers": {
        "d_model": 32,
        "d_ff": 48,
        "d_kv": 8,
        "num_layers": 2,
        "num_heads": 4,
        "num_experts": 2,
    },
}


def refused(family: str) -> Any:
    """A model that cannot carry a prefix, without weights."""
    kinds = {"Deberta": "Model", "SwitchTransformers": "ForConditionalGeneration"}
    with torch.device("meta"):
        return getattr(transformers, family + kinds.get(family, "ForCausalLM"))(
            config_of(family, REFUSED[family])
        )


def config_of(family: str, extra: dict[str, Any], **more: Any) -> Any:
    """A config of `family` with `extra`, whose key "class" names another one's class."""
    extra = {key: value for key, value in extra.items() if key != "class"}
    names = {"Gemma3": "Gemma3TextConfig", "Gemma3n": "Gemma3nTextConfig", "Mllama": "MllamaTextConfig"}
    kind = getattr(transformers, names.get(family, f"{family}Config"))
    return kind(**{**SMALL, "pad_token_id": 0, **extra, **more})


def decoder(family: str = "Llama", *, seed: int = 0, **more: Any) -> Any:
    """A causal language model, frozen, in eval mode."""
    extra = {**DECODERS[family], **WIDE}
    name = extra.get("class", family)
    kind = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    return _frozen(getattr(transformers, kind), config_of(name, extra, **more), seed)


def encoder(
    family: str = "Bert", *, seed: int = 0, labels: int = 5, task: str = "Sequence", **more: Any
) -> Any:
    """A classifier of sequences (or of each token, with task="Token"), frozen, in eval mode."""
    extra = {**(ENCODERS | BEYOND_PEFT)[family], **WIDE}
    name = extra.get("class", family)
    config = config_of(name, extra, num_labels=labels, **more)
    return _frozen(getattr(transformers, f"{name}For{task}Classification"), config, seed)


def encoder_decoder(family: str = "T5", *, seed: int = 0, **more: Any) -> Any:
    """An encoder with a decoder behind it, frozen, in eval mode."""
    extra = ENCODER_DECODERS[family]
    name = extra["class"]
    if name == "Bart":
        config = transformers.BartConfig(
            **{**_sizes(extra), "d_model": 32, "max_position_embeddings": 64, "init_std": 0.3, **more}
        )
    else:
        config = transformers.T5Config(**{**_sizes(extra), "d_model": 32, **more})
    return _frozen(getattr(transformers, f"{name}ForConditionalGeneration"), config, seed)


def _sizes(extra: dict[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": 60,
        "pad_token_id": 0,
        **{key: value for key, value in extra.items() if key != "class"},
    }


def _frozen(kind: Any, config: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    model = kind(config).eval().requires_grad_(False)
    if hasattr(config, "_experts_implementation_internal"):
        model.set_experts_implementation("eager")  # the others know no float64
    return model


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


def in_peft(model: Any, prefix: Prefix, task_type: str, *, told_shape: bool = False) -> Any:
    """A copy of `model` with `prefix` in PEFT, which finds out the shape itself or is told."""
    first = prefix.shape.layers[0]
    shape = {
        "num_layers": len(prefix.shape.layers),
        "num_attention_heads": first.heads,
        "token_dim": first.heads * first.key_size,
    }
    settings = PrefixTuningConfig(
        task_type=task_type, num_virtual_tokens=prefix.length, **(shape if told_shape else {})
    )
    reference = get_peft_model(copy.deepcopy(model), settings).eval()
    with torch.no_grad():
        reference.prompt_encoder.default.embedding.weight.copy_(prefix.key_values())
    return reference
