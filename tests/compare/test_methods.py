"""The methods on tiny bases: how many numbers they train, where they start, and that a soft prompt is PEFT's."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from pipeline.base import base_model
from pipeline.base.base_model import ResolvedBase, head_parameters, weights_digest
from pipeline.base.mean_pooled import MeanPooledForSequenceClassification
from pipeline.base.padding import padded
from pipeline.compare import methods, peft_models
from pipeline.errors import CompareError
from pipeline.params import PrefixParams, Task
from pipeline.prefix.generation import generate
from pipeline.train.batches import Batch
from pipeline.train.losses import batch_loss
from tests.evaluation_world import resolved
from tests.prefix.models import BEYOND_PEFT, ENCODERS, batch, encoder

PREFIX = PrefixParams(length=4)
LABELS = ("bird", "cat", "dog")
WITH_PEFT = ("prompt", "ptuning", "lora")
TASKS: tuple[Task, ...] = ("classification", "generation")


@pytest.fixture(scope="module")
def bases(encoder_folder: Path, decoder_folder: Path) -> dict[str, ResolvedBase]:
    return {"classification": resolved(encoder_folder), "generation": resolved(decoder_folder)}


def model_for(bases: dict[str, ResolvedBase], task: Task, *, seed: int = 0, pooling: Any = None) -> Any:
    labels = LABELS if task == "classification" else None
    return base_model.load(bases[task], task, labels=labels, pooling=pooling, seed=seed)


def put_on(name: str, model: Any, task: Task, **changed: Any) -> peft_models.Adapted:
    return peft_models.put_on(name, model, task, PREFIX, **{"seed": 3, **changed})


def moved(adapted: peft_models.Adapted) -> peft_models.Adapted:
    """As after some training: LoRA starts without any effect."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (*adapted.own.values(), *adapted.head.values()):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return adapted


PADDED = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", WITH_PEFT)
def test_only_the_method_and_the_head_are_trained_and_the_base_is_bitwise_as_before(
    bases: dict[str, ResolvedBase], name: str, task: Task
):
    model = model_for(bases, task)
    before = weights_digest(model)
    head = {name: p.detach().clone() for name, p in head_parameters(model).items()}
    adapted = put_on(name, model, task)
    assert all(p.requires_grad for p in (*adapted.own.values(), *adapted.head.values()))
    trained = {id(p) for p in adapted.peft_model.parameters() if p.requires_grad}
    assert trained == {id(p) for p in (*adapted.own.values(), *adapted.head.values())}
    # The head starts from the same weights as ours for a seed.
    assert len(adapted.head) == len(head) == (2 if task == "classification" else 0)
    for ours, theirs in zip(head.values(), adapted.head.values(), strict=True):
        assert torch.equal(ours, theirs)
    assert not any(module.training for module in adapted.peft_model.modules())
    moved(adapted)
    assert weights_digest(adapted.bare()) == before


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", [1, 4, 9])
def test_loras_rank_is_the_one_nearest_to_the_prefixs_number_of_parameters(
    bases: dict[str, ResolvedBase], task: Task, length: int
):
    wanted = PrefixParams(length=length)
    counts = {}
    for rank in range(1, 9):
        adapted = peft_models.put_on("lora", model_for(bases, task), task, wanted, seed=0, lora_rank=rank)
        counts[rank] = sum(p.numel() for p in adapted.own.values())
    model = model_for(bases, task)
    shape = peft_models.prefix_parameters(model, wanted)
    chosen = peft_models.put_on("lora", model, task, wanted, seed=0)
    distances = {rank: abs(count - shape) for rank, count in counts.items()}
    assert distances[chosen.details["rank"]] == min(distances.values())


@pytest.mark.parametrize("pooling", [None, "mean"])
def test_lora_on_all_linear_layers_is_not_on_the_head(pooling: Any):
    model = encoder("ModernBert", labels=3)
    if pooling == "mean":
        model = MeanPooledForSequenceClassification(model.base_model).eval().requires_grad_(False)
    assert "head.dense.weight" in head_parameters(model) or pooling == "mean"
    adapted = put_on("lora", model, "classification", lora_rank=1)
    assert adapted.details["targets"] == ["Wi", "Wo", "Wqkv"]
    assert not any("head" in name or "classifier" in name for name in adapted.own)
    assert adapted.head
    assert not any("lora" in name for name in adapted.head)
    # For the number of parameters, too, that decides the rank.
    size = sum(p.numel() for p in adapted.own.values())
    wanted = peft_models.prefix_parameters(model, PREFIX)
    fresh = encoder("ModernBert", labels=3)
    if pooling == "mean":
        fresh = MeanPooledForSequenceClassification(fresh.base_model).eval().requires_grad_(False)
    assert peft_models.nearest_rank(fresh, PREFIX, "all-linear") == max(1, round(wanted / size))


@pytest.mark.parametrize("family", [*ENCODERS, *BEYOND_PEFT])
@pytest.mark.parametrize("name", WITH_PEFT)
def test_every_method_is_put_on_every_encoder_and_all_of_it_is_trained(family: str, name: str):
    model = encoder(family, labels=3)
    inputs = batch(pad=model.config.pad_token_id)
    plain, own = model(**inputs).logits, len(head_parameters(model))
    adapted = moved(put_on(name, model, "classification"))
    assert len(adapted.head) == own
    logits = adapted.model(**inputs).logits
    assert (logits - plain).abs().max() > 1e-4
    logits.square().sum().backward()
    # No text passes through the layer with which ESM finds contacts, which is linear, too.
    read = [p for name, p in adapted.own.items() if "contact_head" not in name]
    assert all(p.grad is not None and bool(p.grad.abs().max() > 0) for p in read)
    assert all(p.grad is not None for p in adapted.head.values())


def test_a_base_that_peft_has_no_place_in_is_an_error_that_says_so(bases: dict[str, ResolvedBase]):
    model = model_for(bases, "classification")
    with pytest.raises(CompareError, match=r"(?s)cannot put lora on BertFor.*nowhere.*--methods"):
        peft_models.nearest_rank(model, PREFIX, ["nowhere"])


def test_prompt_tuning_starts_from_the_embeddings_of_the_given_tokens(bases: dict[str, ResolvedBase]):
    model = model_for(bases, "classification")
    adapted = put_on("prompt", model, "classification", start_tokens=[7, 8, 7, 9])
    (vectors,) = adapted.own.values()
    assert torch.equal(vectors, model.get_input_embeddings().weight[[7, 8, 7, 9]])


@pytest.mark.parametrize("name", WITH_PEFT)
def test_a_seed_decides_where_a_method_starts(bases: dict[str, ResolvedBase], name: str):
    starts = [
        [p.detach().clone() for p in put_on(name, model_for(bases, "generation"), "generation", seed=seed).own.values()]
        for seed in (1, 1, 2)
    ]  # fmt: skip
    same, other = ([torch.equal(a, b) for a, b in zip(starts[0], starts[i], strict=True)] for i in (1, 2))
    assert all(same)
    assert not all(other)


def test_loras_dropout_is_in_force_in_training_alone_and_follows_from_the_seed(
    bases: dict[str, ResolvedBase],
):
    adapted = moved(put_on("lora", model_for(bases, "classification"), "classification", dropout=0.5))

    def logits() -> Any:
        with torch.no_grad():
            return adapted.model(input_ids=PADDED, attention_mask=MASK).logits

    plain, state = logits(), torch.get_rng_state()
    found = []
    for seed in (1, 1, 2):
        with adapted.in_training(seed):
            found.append(logits())
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
    assert not torch.allclose(found[0], plain)
    with pytest.raises(InterruptedError), adapted.in_training(1):
        raise InterruptedError
    assert torch.equal(logits(), plain)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", WITH_PEFT)
def test_without_dropout_training_changes_nothing(bases: dict[str, ResolvedBase], name: str):
    adapted = moved(put_on(name, model_for(bases, "classification"), "classification"))
    plain = adapted.model(input_ids=PADDED, attention_mask=MASK).logits
    with adapted.in_training(1):
        assert torch.equal(adapted.model(input_ids=PADDED, attention_mask=MASK).logits, plain)


@pytest.mark.parametrize(
    ("task", "pooling"), [("classification", None), ("classification", "mean"), ("generation", None)]
)
@pytest.mark.parametrize("name", WITH_PEFT)
def test_what_is_saved_and_loaded_answers_as_before_and_loads_with_peft_alone(
    bases: dict[str, ResolvedBase], tmp_path: Path, name: str, task: Task, pooling: Any
):
    adapted = moved(put_on(name, model_for(bases, task, pooling=pooling), task))
    adapted.save(tmp_path / "saved", "tiny")
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert str(tmp_path.parent) not in (tmp_path / "saved" / "adapter_config.json").read_text()
    expected = adapted.model(input_ids=PADDED, attention_mask=MASK).logits
    again = peft_models.load(model_for(bases, task, seed=9, pooling=pooling), tmp_path / "saved")
    torch.testing.assert_close(again(input_ids=PADDED, attention_mask=MASK).logits, expected)
    other = model_for(bases, task, seed=9, pooling=pooling)
    alone = peft.PeftModel.from_pretrained(other, str(tmp_path / "saved")).eval()
    theirs = alone(input_ids=PADDED, attention_mask=MASK).logits
    if task == "generation":
        theirs, expected = theirs[:, -5:][MASK.bool()], expected[MASK.bool()]
    if pooling == "mean" and name != "lora":  # PEFT alone counts the virtual tokens as text
        assert not torch.allclose(theirs, expected, atol=0.1)
    else:
        torch.testing.assert_close(theirs, expected)


@pytest.mark.parametrize("name", ["prompt", "ptuning"])
def test_a_soft_prompts_loss_is_that_of_pefts_logits(bases: dict[str, ResolvedBase], name: str):
    adapted = moved(put_on(name, model_for(bases, "generation"), "generation"))
    targets, positions = torch.tensor([9, 3, 3]), torch.tensor([2, 3, 5 + 1])
    found = batch_loss(adapted.model, Batch(PADDED, MASK, targets, positions))
    found.total.backward()
    gradients = [p.grad.clone() for p in adapted.own.values()]
    other = moved(put_on(name, model_for(bases, "generation"), "generation"))
    other.model._forward_pre_hooks.clear()
    base = other.model.model
    base._forward_pre_hooks.clear()
    base._forward_hooks.clear()  # PEFT's own way in
    logits = other.peft_model(input_ids=PADDED, attention_mask=MASK).logits[:, PREFIX.length :]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1)[positions], targets, reduction="sum")
    torch.testing.assert_close(found.total, loss)
    loss.backward()
    for ours, parameter in zip(gradients, other.own.values(), strict=True):
        torch.testing.assert_close(ours, parameter.grad)
    assert any(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("name", ["prompt", "ptuning"])
def test_a_soft_prompts_padding_changes_nothing_on_either_side(bases: dict[str, ResolvedBase], name: str):
    model = moved(put_on(name, model_for(bases, "generation"), "generation")).model
    alone = model(input_ids=PADDED[1:, :3]).logits[0]
    right = model(input_ids=PADDED, attention_mask=MASK).logits[1, :3]
    left_ids, left_mask = torch.tensor([[2, 5, 6, 7, 3], [0, 0, 2, 8, 3]]), MASK.flip(1)
    left = model(input_ids=left_ids, attention_mask=left_mask).logits[1, 2:]
    torch.testing.assert_close(right, alone)
    torch.testing.assert_close(left, alone)


def test_a_soft_prompt_on_a_classifier_with_a_decoder_reads_each_rows_last_real_token(
    decoder_folder: Path,
):
    model = base_model.load(resolved(decoder_folder), "classification", labels=LABELS)
    model = moved(put_on("prompt", model, "classification")).model
    alone = model(input_ids=PADDED[1:, :3], attention_mask=MASK[1:, :3]).logits[0]
    torch.testing.assert_close(model(input_ids=PADDED, attention_mask=MASK).logits[1], alone)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", WITH_PEFT)
def test_generation_with_a_cache_and_padding_is_what_step_by_step_decoding_gives(
    bases: dict[str, ResolvedBase], name: str, beams: int
):
    model = moved(put_on(name, model_for(bases, "generation"), "generation")).model
    prompts = [[2, 5, 6, 7], [2, 8]]
    input_ids, mask = padded(prompts, 0, left=True)
    found = generate(
        model, None, input_ids, mask, max_new_tokens=5, eos_token_id=10_000, pad_token_id=0, beams=beams
    )
    for prompt, sequence in zip(prompts, found.tolist(), strict=True):
        alone = torch.tensor([prompt])
        if beams == 1:
            for token in sequence:
                assert model(input_ids=alone).logits[0, -1].argmax() == token
                alone = torch.cat([alone, torch.tensor([[token]])], dim=1)
        else:
            one = generate(
                model, None, alone, torch.ones_like(alone),
                max_new_tokens=5, eos_token_id=10_000, pad_token_id=0, beams=beams,
            )  # fmt: skip
            assert one[0].tolist() == sequence


def test_methods_are_shown_in_one_order_and_all_of_the_task_are_compared_unless_named():
    assert methods.chosen(None, "classification") == ("prefix", "prompt", "ptuning", "lora", "probe")
    assert methods.chosen(None, "generation") == ("prefix", "prompt", "ptuning", "lora")
    assert methods.chosen(("lora", "prefix"), "generation") == ("prefix", "lora")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("prefix", "lorra"), "'lorra' is no method; expected some of prefix, prompt, ptuning, lora"),
        (("prefix", "probe"), "'probe' is not for generation; expected some of prefix"),
        (("lora",), "got lora; expected prefix, which the others are compared with"),
        (("prefix", "prefix"), "expected prefix, which the others are compared with, and at least one other"),
        ((), "got none; expected prefix"),
    ],
)
def test_methods_that_cannot_be_compared_are_refused(names: tuple[str, ...], said: str):
    with pytest.raises(CompareError, match=said):
        methods.chosen(names, "generation")


def test_the_command_that_installs_peft_is_the_extras():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    (wanted,) = project["project"]["optional-dependencies"]["compare"]
    assert f'"{wanted}"' in methods.INSTALL


def test_without_peft_its_methods_are_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CompareError, match=r"(?s)prompt, lora: .*not installed.*pip install \"peft"):
        methods.chosen(("prefix", "lora", "prompt"), "generation")
    assert methods.chosen(("prefix", "probe"), "classification") == ("prefix", "probe")
