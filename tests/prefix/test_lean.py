"""Less memory and time, the same result: fused activations, recomputed layers, the last layer where it is read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.errors import PrefixError
from pipeline.prefix.architecture import anatomy
from pipeline.prefix.attention import attach
from pipeline.prefix.lean import last_layer_at, lean
from pipeline.prefix.target_loss import target_loss
from tests.prefix import models

PLACES = torch.tensor([3, 4, 10, 20])
TARGETS = torch.tensor([7, 9, 30, 31])


def kept(model: PreTrainedModel, compute: Any) -> tuple[torch.Tensor, int]:
    """What `compute` returns, and the bytes it keeps for the backward pass besides the model's weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = compute()
    return result, sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


def loss_and_gradient(model: PreTrainedModel, *, generation: bool) -> tuple[torch.Tensor, torch.Tensor, int]:
    prefix = models.random_prefix(model)
    with attach(model, prefix):
        if generation:
            (loss, _), size = kept(model, lambda: target_loss(model, models.batch(), PLACES, TARGETS))
        else:
            loss, size = kept(model, lambda: model(**models.batch()).logits.logsumexp(-1).sum())
        loss.backward()
    assert prefix.vectors.grad is not None
    return loss.detach(), prefix.vectors.grad, size


def test_every_model_of_the_tests_is_compared() -> None:
    assert len(models.DECODERS) == 27
    assert len(models.ENCODERS | models.BEYOND_PEFT) == 12


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", [*models.DECODERS, *models.ENCODERS, *models.BEYOND_PEFT])
def test_loss_and_gradient_are_what_they_were(family: str, recompute: bool) -> None:
    generation = family in models.DECODERS
    model = models.decoder(family) if generation else models.encoder(family)
    loss, gradient, size = loss_and_gradient(model, generation=generation)
    forwards = {module: module.__dict__.get("forward") for module in model.modules()}
    if recompute and family == "Albert":
        with pytest.raises(PrefixError, match="of which each is one layer"), lean(model, recompute=True):
            pass
        return
    with lean(model, recompute=recompute):
        found, grown, smaller = loss_and_gradient(model, generation=generation)
    assert found.item() == pytest.approx(loss.item(), rel=1e-6)
    assert (grown - gradient).abs().max() <= 1e-5 * gradient.abs().max()
    assert smaller < size if recompute else smaller <= size
    assert {module: module.__dict__.get("forward") for module in model.modules()} == forwards


def test_gpt2_keeps_less_for_its_activations() -> None:
    model = models.decoder("GPT2")
    _, _, size = loss_and_gradient(model, generation=True)
    with lean(model, recompute=False):
        _, _, smaller = loss_and_gradient(model, generation=True)
    assert smaller < 0.7 * size


def test_layers_that_are_recomputed_need_no_training_mode_and_no_dropout_is_drawn() -> None:
    model = models.decoder("OPT", dropout=0.5)
    assert not model.training
    loss, gradient, _ = loss_and_gradient(model, generation=True)
    with lean(model, recompute=True):
        found, grown, _ = loss_and_gradient(model, generation=True)
    assert found == loss
    assert torch.equal(grown, gradient)


def test_a_model_whose_layers_are_not_in_a_list_is_not_recomputed() -> None:
    model = models.decoder("Llama")
    layers = list(model.model.layers)
    for number, layer in enumerate(layers):
        model.model.add_module(f"layer{number}", layer)
    del model.model.layers
    with (
        pytest.raises(PrefixError, match=r"set training\.gradient_checkpointing to false"),
        lean(model, recompute=True),
    ):
        pass
    with lean(model, recompute=False):
        pass


# An expert is chosen for its token; BLOOM's and MPT's parts take what they add to, too.
IN_FULL = ("Qwen3Moe", "GptOss", "GptOss, window of 7", "Qwen3Next", "Bloom", "Mpt")


@pytest.mark.parametrize("family", models.DECODERS)
def test_the_last_feed_forward_part_runs_at_the_places_that_are_read(family: str) -> None:
    model = models.decoder(family)
    rows: list[int] = []
    for module in model.modules():
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            module.register_forward_hook(
                lambda _, __, output: rows.append(output.numel() // output.shape[-1])
            )
    inputs = models.batch()
    with attach(model, models.random_prefix(model)):
        every = model.base_model(**inputs).last_hidden_state
        assert family in (*IN_FULL, "Lfm2") or set(rows) == {27}
        rows.clear()
        with last_layer_at(anatomy(model), PLACES, 27):
            chosen = model.base_model(**inputs).last_hidden_state
    # OPT's two matrices are parts of the layer itself, where nothing says what lies between them
    assert rows.count(4) == (0 if family in (*IN_FULL, "OPT") else 3 if _gated(model) else 2)
    assert (chosen - every).flatten(0, 1)[PLACES].abs().max() <= 1e-6 * every.abs().max()
    again = model.base_model(**inputs).last_hidden_state
    assert again.shape == every.shape
    assert len(rows) > 0


def test_a_layer_that_will_be_recomputed_is_computed_in_full() -> None:
    model = models.decoder("Llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    loss, gradient, _ = loss_and_gradient(model, generation=True)
    plain = models.decoder("Llama")
    expected, wanted, _ = loss_and_gradient(plain, generation=True)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (gradient - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_a_mixture_of_experts_is_computed_in_full() -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    more: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    config = Qwen3MoeConfig(**{**models.SMALL, "num_key_value_heads": 2, **more})
    model = Qwen3MoeForCausalLM(config).eval().requires_grad_(False)
    inputs = models.batch()
    every = model.model(**inputs).last_hidden_state
    with last_layer_at(anatomy(model), PLACES, 27):
        assert torch.equal(model.model(**inputs).last_hidden_state, every)


def _gated(model: PreTrainedModel) -> bool:
    return any(name.endswith(("gate_proj", "feed_forward.w1")) for name, _ in model.named_modules())


def test_a_pass_over_other_tokens_than_were_said_is_computed_in_full() -> None:
    model = models.decoder("Llama")
    every = model.model(**models.batch()).last_hidden_state
    with last_layer_at(anatomy(model), PLACES, 30):
        assert torch.equal(model.model(**models.batch()).last_hidden_state, every)


def test_layers_are_not_recomputed_in_training_mode() -> None:
    model = models.decoder("Llama").train()
    with pytest.raises(PrefixError, match="in training mode"), lean(model, recompute=True):
        pass
