"""The loss at target positions, chunk by chunk, is the loss over full logits, on every decoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from pipeline.prefix import target_loss as module
from pipeline.prefix.attention import attach
from pipeline.prefix.target_loss import target_loss
from tests.prefix import models

CAPPED = "Gemma2 capped"  # its logits are capped after the head
FAMILIES = [*models.DECODERS, CAPPED]


def model_of(family: str) -> PreTrainedModel:
    if family != CAPPED:
        model: PreTrainedModel = models.decoder(family)
        return model
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    more: dict[str, Any] = {"num_key_value_heads": 1, "head_dim": 16, "final_logit_softcapping": 0.5}
    config = Gemma2Config(**{**models.SMALL, **models.WIDE, **more})
    return Gemma2ForCausalLM(config).eval().requires_grad_(False)


def over_full_logits(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], positions: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, int]:
    chosen = model(**inputs).logits.flatten(0, 1)[positions]
    loss = torch.nn.functional.cross_entropy(chosen, targets, reduction="sum")
    return loss, int((chosen.argmax(-1) == targets).sum())


@pytest.fixture
def positions() -> torch.Tensor:
    return torch.tensor([3, 3, 4, 10, 12, 13, 20])  # one of them predicts two targets


@pytest.fixture
def targets() -> torch.Tensor:
    return torch.tensor([7, 9, 30, 31, 8, 2, 59])


def test_every_decoder_of_the_tests_is_compared() -> None:
    assert len(FAMILIES) == 28


@pytest.mark.parametrize("rows_at_once", [1, 3, 100])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_hits_and_gradient_are_those_over_full_logits(
    family: str,
    rows_at_once: int,
    positions: torch.Tensor,
    targets: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CHUNK", rows_at_once * 60)
    model = model_of(family)
    prefix = models.random_prefix(model)
    inputs = models.batch()
    before = dict(vars(model.base_model))
    with attach(model, prefix):
        results = []
        for compute in (over_full_logits, target_loss):
            prefix.zero_grad()
            loss, right = compute(model, inputs, positions, targets)
            (loss / 7).backward()  # type: ignore[no-untyped-call]
            results.append((loss.item(), right, prefix.vectors.grad.clone()))
        with torch.no_grad():
            judged, right = target_loss(model, inputs, positions, targets)
    (expected, hits, gradient), (found, uncounted, chunked) = results
    assert found == judged.item() == pytest.approx(expected, rel=1e-6)
    assert right == hits
    assert uncounted is None  # which would cost a search over the vocabulary
    assert models.least(prefix.shape, gradient) > 0
    assert (chunked - gradient).abs().max() <= 1e-5 * gradient.abs().max()
    assert vars(model.base_model).keys() == before.keys()


def test_full_logits_never_exist(
    positions: torch.Tensor, targets: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 2 * 60)
    model = models.decoder("Llama")
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda _, __, output: seen.append(output.numel()))
    with attach(model, models.random_prefix(model)):
        target_loss(model, models.batch(), positions, targets)
    assert seen == [120, 120, 120]  # six places, two at a time: two of the seven targets share one


def test_without_gradients_there_is_no_graph(positions: torch.Tensor, targets: torch.Tensor) -> None:
    model = models.decoder("Llama")
    prefix = models.random_prefix(model)
    with attach(model, prefix):
        trained, _ = target_loss(model, models.batch(), positions, targets)
        with torch.no_grad():
            judged, _ = target_loss(model, models.batch(), positions, targets)
    assert trained.requires_grad
    assert not judged.requires_grad
    assert judged.item() == trained.item()


def test_an_error_in_the_head_leaves_the_model_as_it_was(
    positions: torch.Tensor, targets: torch.Tensor
) -> None:
    model = models.decoder("Llama")
    inputs = models.batch()
    before = model(**inputs).logits

    def fail(*_: Any) -> None:
        raise RuntimeError("of the head")

    hook = model.lm_head.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="of the head"):
        target_loss(model, inputs, positions, targets)
    hook.remove()
    assert torch.equal(model(**inputs).logits, before)
