"""What PEFT makes of the architectures that the engine is tested on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from tests.prefix import models, slow
from tests.prefix.cases import LENGTH, TOLERANCE, Case, alone, batch, of_row, plain, prefixed, weighed


@cache
def peer(case: Case) -> dict[str, str]:
    """What PEFT does with the same model and prefix: "equal", "differs", or the error."""

    def tried(what: Callable[[], bool]) -> str:
        try:
            return "equal" if what() else "differs"
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:90]}"

    logits, told = tried(lambda: _logits(case, told_shape=False)), False
    if logits != "equal" and tried(lambda: _logits(case, told_shape=True)) == "equal":
        logits, told = "equal if told the shape", True
    if case.both and logits == "differs":
        logits = "not in the encoder"
    # A sequence's head reads one column, so that its logits do not tell what padding on the left does.
    padding = "" if case.kind == "encoder" else tried(lambda: _left(case, told))
    return {
        "logits": logits,
        "padding": padding,
        "checkpointing": tried(lambda: _checkpointing(case, told)),
    }


def _logits(case: Case, *, told_shape: bool) -> bool:
    model = case.model()
    prefix = models.random_prefix(model, LENGTH)
    if case.both:
        return _encoder(case, model)
    inputs = batch(case, model)
    theirs = plain(models.in_peft(model, prefix, case.task_type, told_shape=told_shape), inputs)
    ours, mask = prefixed(model, prefix, **inputs), inputs["attention_mask"]
    return all(
        slow.close(of_row(case, theirs, mask, row), of_row(case, ours, mask, row)) < TOLERANCE
        for row in range(3)
    )


def _encoder(case: Case, model: Any) -> bool:
    """Whether PEFT's prefix reaches the encoder."""
    from peft import PrefixTuningConfig, get_peft_model

    theirs = get_peft_model(
        copy.deepcopy(model), PrefixTuningConfig(task_type=case.task_type, num_virtual_tokens=LENGTH)
    ).eval()
    torch.nn.init.normal_(theirs.prompt_encoder.default.embedding.weight)
    inputs = batch(case, model)
    with torch.no_grad():
        states = (theirs(**inputs).encoder_last_hidden_state, model(**inputs).encoder_last_hidden_state)
    return not torch.equal(*states)


def _left(case: Case, told: bool) -> bool:
    model = case.model()
    theirs = models.in_peft(model, models.random_prefix(model, LENGTH), case.task_type, told_shape=told)
    right, left = batch(case, model), batch(case, model, "left")
    tokens = alone(right, 0)["input_ids"][0]
    left["input_ids"][0, -len(tokens) :] = tokens
    found, expected = (plain(theirs, inputs) for inputs in (left, right))
    return (
        slow.close(
            of_row(case, found, left["attention_mask"], 0), of_row(case, expected, right["attention_mask"], 0)
        )
        < TOLERANCE
    )


def _checkpointing(case: Case, told: bool) -> bool:
    gradients = []
    for checkpointed in (False, True):
        model = case.model()
        theirs = models.in_peft(model, models.random_prefix(model, LENGTH), case.task_type, told_shape=told)
        if checkpointed:
            theirs.base_model.gradient_checkpointing_enable({"use_reentrant": False})
        theirs.train()
        for module in theirs.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        inputs = batch(case, model)
        weighed(case, theirs(**inputs).logits, inputs["attention_mask"]).backward()
        gradients.append(theirs.prompt_encoder.default.embedding.weight.grad)
    return bool((gradients[0] - gradients[1]).abs().max() < 1e-4 * gradients[0].abs().max())
