"""BERT and Llama with a prefix, written out by hand in NumPy float64: one row, one head, one token at a time.

Shares nothing with torch, transformers or the engine but the weights. Padding is left out instead of masked.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray


def weights(model: Any) -> dict[str, Array]:
    return {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}


def _linear(w: dict[str, Array], name: str, x: Array) -> Array:
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def _attend(query: Array, keys: Array, values: Array) -> Array:
    """query [D], keys and values [N, D]: softmax(q·k / √D) · v."""
    scores = np.array([query @ key for key in keys]) / math.sqrt(len(query))
    share = np.exp(scores - scores.max())
    share /= share.sum()
    return sum(s * value for s, value in zip(share, values, strict=True))


def _attention(q: Array, k: Array, v: Array, prefix: Array, *, causal: bool) -> Array:
    """q [N, Hq, D], k and v [N, H, D], prefix [2, H, P, D] → [N, Hq·D]."""
    tokens, heads, size = q.shape
    shared = heads // k.shape[1]
    out = np.zeros((tokens, heads, size))
    for i in range(tokens):
        seen = i + 1 if causal else tokens
        for h in range(heads):
            g = h // shared
            keys = np.concatenate([prefix[0, g], k[:seen, g]])
            values = np.concatenate([prefix[1, g], v[:seen, g]])
            out[i, h] = _attend(q[i, h], keys, values)
    return out.reshape(tokens, heads * size)


def _layer_norm(w: dict[str, Array], name: str, x: Array, eps: float) -> Array:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def bert_logits(model: Any, key_values: Array, tokens: list[int]) -> Array:
    """One row's class logits; key_values [L, 2, H, P, D]."""
    w, config = weights(model), model.config
    heads, eps, length = config.num_attention_heads, config.layer_norm_eps, key_values.shape[3]
    e = "bert.embeddings"
    x = np.array(
        [
            w[f"{e}.word_embeddings.weight"][token]
            + w[f"{e}.position_embeddings.weight"][length + i]
            + w[f"{e}.token_type_embeddings.weight"][0]
            for i, token in enumerate(tokens)
        ]
    )
    x = _layer_norm(w, f"{e}.LayerNorm", x, eps)
    for layer, prefix in enumerate(key_values):
        p = f"bert.encoder.layer.{layer}"
        q, k, v = (
            _linear(w, f"{p}.attention.self.{part}", x).reshape(len(x), heads, -1)
            for part in ("query", "key", "value")
        )
        attended = _linear(w, f"{p}.attention.output.dense", _attention(q, k, v, prefix, causal=False))
        x = _layer_norm(w, f"{p}.attention.output.LayerNorm", attended + x, eps)
        inner = _linear(w, f"{p}.intermediate.dense", x)
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        x = _layer_norm(w, f"{p}.output.LayerNorm", _linear(w, f"{p}.output.dense", inner) + x, eps)
    return _linear(w, "classifier", np.tanh(_linear(w, "bert.pooler.dense", x[0])))


def _rotate(x: Array, position: int, base: float) -> Array:
    """RoPE on one head's vector [D], halves paired."""
    half = len(x) // 2
    angle = position * base ** (-np.arange(half) / half)
    first, second = x[:half], x[half:]
    return np.concatenate(
        [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)]
    )


def llama_logits(model: Any, key_values: Array, tokens: list[int]) -> Array:
    """One row's next-token logits, [N, vocabulary]; key_values [L, 2, H, P, D]."""
    w, config = weights(model), model.config
    base = config.rope_parameters["rope_theta"]
    length = key_values.shape[3]

    def norm(name: str, x: Array) -> Array:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * w[f"{name}.weight"]

    def rotated(x: Array) -> Array:
        return np.array([[_rotate(head, length + i, base) for head in row] for i, row in enumerate(x)])

    x = w["model.embed_tokens.weight"][tokens]
    for layer, prefix in enumerate(key_values):
        p = f"model.layers.{layer}"
        y = norm(f"{p}.input_layernorm", x)
        q = _linear(w, f"{p}.self_attn.q_proj", y).reshape(len(x), config.num_attention_heads, -1)
        k, v = (
            _linear(w, f"{p}.self_attn.{part}", y).reshape(len(x), config.num_key_value_heads, -1)
            for part in ("k_proj", "v_proj")
        )
        x = x + _linear(
            w, f"{p}.self_attn.o_proj", _attention(rotated(q), rotated(k), v, prefix, causal=True)
        )
        y = norm(f"{p}.post_attention_layernorm", x)
        gate = _linear(w, f"{p}.mlp.gate_proj", y)
        x = x + _linear(
            w, f"{p}.mlp.down_proj", gate / (1 + np.exp(-gate)) * _linear(w, f"{p}.mlp.up_proj", y)
        )
    return _linear(w, "lm_head", norm("model.norm", x))
