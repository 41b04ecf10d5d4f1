"""What a comparison holds equal and what it does not, in sentences: its reader decides from them what it is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.compare.job import Setting
from pipeline.compare.serving import NEW_TOKENS
from pipeline.compare.sweep import Swept


def equal(setting: Setting, swept: Sequence[Swept], steps: int, seeds: Sequence[int]) -> list[str]:
    """What was the same for all methods."""
    training = setting.training
    stepped = [one for one in swept if one.rate is not None]
    counts = sorted({len(one.tried) for one in stepped})
    unit = "sources, each with all of its references" if setting.task == "generation" else "rows"
    said = [
        "The frozen base, the prepared splits, and the test rows, which are read once, for the chosen rate only.",
        f"The budget of a training: {steps:,} optimiser steps of {training.batch_size} {unit}, the same rows in the same "
        "order; no training stops early, and each keeps its step with the lowest validation loss.",
        f"The optimiser: AdamW, betas {training.adam_beta1:g} and {training.adam_beta2:g}, weight decay {training.weight_decay:g}, clipping at {training.max_grad_norm:g}, schedule "
        f"{training.schedule} with {100 * training.warmup:g} % warm-up, {training.dtype}, no dropout in the base.",
        f"The choice of the learning rate: by the lowest validation loss with seed {seeds[0]}.",
    ]
    if setting.task == "classification":
        said.append(
            "The classification head: "
            + ("" if training.head_pooling is None else f"on the {training.head_pooling} of the tokens, ")
            + f"the same first weights for a seed, trained at {training.head_learning_rate:g}, "
            f"{_dropout(training.dropout)} of what it reads."
        )
    if counts and len(counts) == 1:
        said.append(f"The number of learning rates tried: {counts[0]} for each method that has one.")
    if len(seeds) > 1:
        said.append(f"The seeds: {', '.join(map(str, seeds))}.")
    return said


def not_equal(
    setting: Setting, swept: Sequence[Swept], records: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """What was not, or may mislead."""
    names = [one.method for one in swept]
    soft = [name for name in ("prompt", "ptuning") if name in names]
    said = []
    counts = {one.method: len(one.tried) for one in swept if one.rate is not None}
    if len(set(counts.values())) > 1:
        said.append(
            "The number of learning rates tried: "
            + ", ".join(f"{count} for {name}" for name, count in counts.items())
            + "."
        )
    said += [
        f"The best learning rate of {one.method} is the {one.at_the_end} that was tried: it may do better beyond "
        f"(--rates {one.method}=…)."
        for one in swept
        if one.at_the_end is not None
    ]
    if "lora" in names:
        lora = records["lora"]
        ratio = lora["trainable_parameters"] / records["prefix"]["trainable_parameters"]
        said.append(
            f"LoRA has rank {lora['details']['rank']} on {', '.join(lora['details']['targets'])}, scaled by 1: "
            f"{ratio:.2f} times the prefix's trainable parameters. Its latency is that of an adapter that can be exchanged; "
            "merged into a copy of the base, it has the frozen base's."
        )
    if setting.training.dropout:
        said.append(_own_dropout(setting, names))
    if soft:
        said.append(
            f"Prompt tuning and P-tuning have as many virtual tokens as the prefix has positions ({setting.prefix.length}), "
            "and so fewer or more trainable parameters. P-tuning's encoder is only there in training."
        )
    if soft and setting.task == "classification":
        said.append(
            "A head on the first token of an encoder's pooler reads the first virtual token under prompt tuning and "
            "P-tuning, as PEFT does it."
            if setting.training.head_pooling is None
            else "Under prompt tuning and P-tuning the mean that the head reads is of the text's tokens; PEFT alone would "
            "count the virtual tokens too."
        )
    if setting.task == "generation":
        said.append(
            "Training time and memory compare engines as well as methods: on a causal decoder the prefix trains on packed "
            "rows where its engine can, the others, through the same loop and loss, on padded ones."
        )
        said.append(f"Latency is for {NEW_TOKENS} new tokens a row.")
    if "probe" in names:
        said.append(
            "The linear probe is not stepped: it is fitted to its end on up to 20,000 training rows, and its strength of "
            "regularisation is chosen by validation accuracy."
        )
    said.append(
        "Learning rates are tried at a few points only, and nothing else is tuned here. The defaults of AdamW's betas and of "
        "the prefix's start were chosen for prefixes, on banking77 and E2E; time, memory and latency are "
        "this machine's, at the time of each training."
    )
    return said


def _dropout(probability: float) -> str:
    return f"dropout of {probability:g}" if probability else "no dropout"


def _own_dropout(setting: Setting, names: Sequence[str]) -> str:
    """What each method drops besides what its head reads."""
    rows = "in each row by itself" if setting.task == "classification" else "once for all rows of a step"
    said = [f"the prefix drops its own numbers with probability {setting.training.dropout:g}, {rows}"]
    if "lora" in names:
        said.append("LoRA what its matrices read, each number by itself (PEFT's lora_dropout)")
    if "prompt" in names or "ptuning" in names:
        said.append("the soft prompts nothing of their own, since PEFT has no dropout for them")
    return f"Dropout: {'; '.join(said)}."
