"""Prefixes trained together on one base, against each trained alone by `Loop`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers

from pipeline.base.base_model import head_parameters, weights_digest
from pipeline.base.mean_pooled import MeanPooledForSequenceClassification
from pipeline.errors import IntegrityError, NonFiniteLossError, PrefixError, TrainingError
from pipeline.params import TrainingParams
from pipeline.prefix.architecture import anatomy
from pipeline.prefix.attention import attach
from pipeline.train import fleet
from pipeline.train.batches import ClassificationRows, GenerationRows, Rows
from pipeline.train.dropout import PrefixDropout
from pipeline.train.fleet import FleetJob, FleetResult, train_together
from pipeline.train.training_loop import Loop
from tests.prefix.models import BEYOND_PEFT, DECODERS, ENCODERS, decoder, encoder, random_prefix

TOLERANCE = 1e-5
SETTINGS: list[dict[str, Any]] = [
    {"learning_rate": 0.05, "batch_size": 4, "epochs": 2, "schedule": "linear", "max_grad_norm": 0.05},
    {"learning_rate": 0.01, "batch_size": 3, "epochs": 1, "gradient_accumulation": 2, "weight_decay": 0.1, "warmup": 0.5},
    {"learning_rate": 0.02, "batch_size": 5, "max_steps": 2, "schedule": "constant", "seed": 3},
]  # fmt: skip
LENGTHS, LABELS = (5, 2, 7), (5, 3, 4)


def class_rows(count: int, seed: int, pad: int) -> Rows:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 12, (count,), generator=draw).tolist()
    rows = [torch.randint(4, 60, (length,), generator=draw).tolist() for length in lengths]
    labels = torch.randint(0, 3, (count,), generator=draw).tolist()
    return ClassificationRows(datasets.Dataset.from_dict({"input_ids": rows, "label": labels}), pad=pad)


def text_rows(count: int, seed: int, model: Any = None) -> Rows:
    draw = torch.Generator().manual_seed(seed)

    def tokens(most: int) -> list[int]:
        length = int(torch.randint(2, most, (1,), generator=draw))
        return torch.randint(4, 60, (length,), generator=draw).tolist()

    rows = {
        "input_ids": [tokens(9) for _ in range(count)],
        "target_ids": [[tokens(6) for _ in range(1 + i % 3)] for i in range(count)],
    }
    return GenerationRows(datasets.Dataset.from_dict(rows), pad=0, model=model)


def parameters(number: int, **more: Any) -> TrainingParams:
    return TrainingParams(
        **{
            "head_learning_rate": 0.02,
            "validations_per_epoch": 2,
            "patience": None,
            **SETTINGS[number],
            **more,
        }
    )


def random_head(model: Any, labels: int, seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        name: 0.2
        * torch.randn(
            (labels if p.shape[0] == model.config.num_labels else p.shape[0], *p.shape[1:]), generator=draw
        ).to(p)
        for name, p in head_parameters(model).items()
    }


def job(model: Any, number: int, *, packed: bool = False, **more: Any) -> FleetJob:
    train, validation = 10 + number, 5 + number
    if head_parameters(model):
        pad = model.config.pad_token_id
        rows, held_out = class_rows(train, number, pad), class_rows(validation, 9 + number, pad)
        head = random_head(model, LABELS[number], number)
    else:
        rows, held_out = (
            text_rows(count, seed, model if packed else None)
            for count, seed in ((train, number), (validation, 9 + number))
        )
        head = {}
    prefix = random_prefix(model, LENGTHS[number], seed=number)
    return FleetJob(prefix, rows, held_out, parameters(number, **more), head)


def alone(model: Any, this: FleetJob, folder: Path) -> tuple[Loop, str]:
    """`this` trained by the loop that trains one prefix, its head in the model's place."""
    own = head_parameters(model)
    if this.head:
        for module in {name.rpartition(".")[0] for name in own}:
            for key in list(model.get_submodule(module)._parameters):
                if f"{module}.{key}" in this.head:
                    model.get_submodule(module)._parameters[key] = torch.nn.Parameter(
                        this.head[f"{module}.{key}"].clone()
                    )
    folder.mkdir()
    dropping = PrefixDropout(this.params.dropout, this.params.seed, this.prefix)
    with attach(model, this.prefix):
        loop = Loop(
            model,
            {"prefix": dict(this.prefix.named_parameters()), "head": head_parameters(model)},
            rows=this.rows,
            validation=this.validation,
            params=this.params,
            folder=folder,
            identity="",
            on_curve=this.on_curve,
            unit="",
            dropped=lambda step, _, examples: dropping.of(step, examples),
        )
        return loop, loop.run()


def equal(
    ours: FleetResult,
    loop: Loop,
    stopped: str,
    start: Mapping[str, torch.Tensor],
    tolerance: float = TOLERANCE,
) -> None:
    assert ours.stopped == stopped
    assert ours.error is None
    assert (ours.counters.step, ours.counters.best_step) == (loop.counters.step, loop.counters.best_step)
    assert ours.counters.best_loss == pytest.approx(loop.counters.best_loss, abs=TOLERANCE)
    assert ours.counters.best_accuracy == loop.counters.best_accuracy
    assert ours.best.keys() == loop.best.keys()
    for name, tensor in ours.best.items():
        assert (tensor - loop.best[name]).abs().max() < tolerance, name
        assert (tensor - start[name]).abs().max() > 1e-3, name


def starts(this: FleetJob) -> dict[str, torch.Tensor]:
    prefix = {f"prefix.{name}": p.detach().clone() for name, p in this.prefix.named_parameters()}
    return prefix | {f"head.{name}": tensor.clone() for name, tensor in this.head.items()}


def compare(
    make: Any, tmp_path: Path, *, tokens: int = fleet.TOKENS, tolerance: float = TOLERANCE, **more: Any
) -> list[FleetResult]:
    model = make()
    jobs = [job(model, number, **more) for number in range(3)]
    before = [starts(this) for this in jobs]
    digest = weights_digest(model)
    results = train_together(model, jobs, tokens=tokens)
    assert weights_digest(model) == digest
    for number, result in enumerate(results):
        fresh = make()
        loop, stopped = alone(fresh, job(fresh, number, **more), tmp_path / str(number))
        equal(result, loop, stopped, before[number], tolerance)
        for name, parameter in jobs[number].prefix.named_parameters():
            assert torch.equal(parameter, result.best[f"prefix.{name}"])
    return results


@pytest.mark.parametrize("family", [*ENCODERS, *BEYOND_PEFT])
def test_classification_together_is_classification_alone(family: str, tmp_path: Path) -> None:
    results = compare(lambda: encoder(family).double(), tmp_path)
    assert [result.counters.step for result in results] == [6, 4, 2]  # each takes its own number of steps
    assert [result.stopped for result in results] == ["epochs", "epochs", "max_steps"]


def on_the_mean(labels: int = 2) -> Any:
    model = MeanPooledForSequenceClassification(encoder(labels=labels).base_model)
    return model.eval().requires_grad_(False).double()


def test_heads_on_the_mean_together_are_heads_on_the_mean_alone(tmp_path: Path) -> None:
    compare(on_the_mean, tmp_path, head_pooling="mean", dropout=0.2)


@pytest.mark.parametrize("family", DECODERS)
def test_generation_together_is_generation_alone(family: str, tmp_path: Path) -> None:
    compare(lambda: decoder(family).double(), tmp_path)


def test_packed_rows_together_are_packed_rows_alone(tmp_path: Path) -> None:
    compare(lambda: decoder().double(), tmp_path, packed=True)


@pytest.mark.parametrize("make", [decoder, encoder, partial(encoder, "Roberta")])
def test_each_drops_what_it_would_alone(make: Any, tmp_path: Path) -> None:
    dropping = compare(lambda: make().double(), tmp_path, dropout=0.3)
    (tmp_path / "none").mkdir()
    plain = compare(lambda: make().double(), tmp_path / "none")
    for one, other in zip(dropping, plain, strict=True):
        assert (one.best["prefix.vectors"] - other.best["prefix.vectors"]).abs().max() > 1e-2


@pytest.mark.parametrize("make", [decoder, encoder])
def test_in_single_precision_it_is_so_up_to_rounding(make: Any, tmp_path: Path) -> None:
    """AdamW divides by the gradient's own size, so rounding in a gradient next to nothing moves that number visibly."""
    compare(make, tmp_path, tolerance=1e-3)


@pytest.mark.parametrize("tokens", [1, 60])
def test_how_many_tokens_share_a_pass_changes_nothing(tokens: int, tmp_path: Path) -> None:
    compare(lambda: decoder().double(), tmp_path, tokens=tokens)


def test_a_pass_has_no_more_tokens_than_asked_for() -> None:
    model = decoder()
    seen: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, out: seen.append(args[0].numel()))
    train_together(model, [job(model, number) for number in range(3)], tokens=150)
    together = max(seen)
    seen.clear()
    train_together(model, [job(model, number) for number in range(3)])
    assert together <= 150 < max(seen)


def test_one_whose_validations_get_worse_ends_and_the_others_go_on() -> None:
    model = encoder()
    first = job(model, 0, learning_rate=1.0, epochs=20, patience=2, schedule="constant", max_grad_norm=1e9)
    results = train_together(model, [first, job(model, 1)])
    assert [result.stopped for result in results] == ["patience", "epochs"]
    assert 4 < results[0].counters.step < 60
    assert results[0].counters.best_step < results[0].counters.step


def test_one_that_overflows_ends_with_its_error_and_the_others_go_on(tmp_path: Path) -> None:
    model = encoder().double()
    spoilt = job(model, 0)
    with torch.no_grad():
        spoilt.prefix.vectors.fill_(float("nan"))
    results = train_together(model, [spoilt, job(model, 1)])
    assert isinstance(results[0].error, NonFiniteLossError)
    assert results[0].stopped is None
    assert results[0].counters.step == 0
    fresh = encoder().double()
    loop, stopped = alone(fresh, job(fresh, 1), tmp_path / "alone")
    equal(results[1], loop, stopped, starts(job(fresh, 1)))


def test_one_whose_validation_overflows_ends_with_its_error() -> None:
    model = encoder()
    huge = job(model, 0, validations_per_epoch=3)
    # model_copy: params.yaml refuses a rate at which numbers overflow.
    object.__setattr__(huge, "params", huge.params.model_copy(update={"learning_rate": 1e30}))
    results = train_together(model, [huge, job(model, 1)])
    assert "the validation loss is nan" in str(results[0].error)
    assert results[0].counters.step == 1
    assert results[1].stopped == "epochs"


def test_the_curves_are_those_of_a_training_alone(tmp_path: Path) -> None:
    model = decoder().double()
    ours: list[Mapping[str, Any]] = []
    theirs: list[Mapping[str, Any]] = []
    first = job(model, 0)
    object.__setattr__(first, "on_curve", ours.append)
    train_together(model, [first, job(model, 1)])
    again = job(model, 0)
    object.__setattr__(again, "on_curve", theirs.append)
    alone(model, again, tmp_path / "alone")
    assert len(ours) == len(theirs) == 6 + 4  # steps and validations
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for key in ("kind", "step", "epoch", "loss", "learning_rate", "grad_norm", "accuracy"):
            assert mine.get(key) == pytest.approx(other.get(key), abs=TOLERANCE)


# -- what is refused -----------------------------------------------------------------------------------------


def refuse_computing(model: Any) -> None:
    model.get_input_embeddings().register_forward_hook(lambda *_: pytest.fail("it computed"))


def test_no_jobs_and_no_rows_are_refused() -> None:
    model = decoder()
    refuse_computing(model)
    with pytest.raises(TrainingError, match="got no jobs; expected at least one"):
        train_together(model, [])
    empty = FleetJob(random_prefix(model), text_rows(3, 0), text_rows(0, 0), parameters(0), {})
    with pytest.raises(TrainingError, match="job 1: validation: got none; expected at least one"):
        train_together(model, [job(model, 0), empty])


def test_a_base_in_training_mode_is_refused() -> None:
    model = decoder().train()
    refuse_computing(model)
    with pytest.raises(
        TrainingError, match=r"LlamaForCausalLM is in training mode, .* call model.eval\(\) first"
    ):
        train_together(model, [job(model, 0)])


@pytest.mark.parametrize("more", [{"dtype": "bfloat16"}, {"gradient_checkpointing": True}])
def test_what_a_fleet_would_not_heed_is_refused(more: dict[str, Any]) -> None:
    model = decoder()
    refuse_computing(model)
    with pytest.raises(TrainingError, match=r"job 1: got training\.dtype .* set neither"):
        train_together(model, [job(model, 0), job(model, 1, **more)])


def test_a_head_that_reads_other_states_than_its_parameters_say_is_refused() -> None:
    model = on_the_mean()
    refuse_computing(model)
    with pytest.raises(
        PrefixError, match=r"job 1: training\.head_pooling is None, and the head of .* 'mean'"
    ):
        train_together(model, [job(model, 0, head_pooling="mean"), job(model, 1)])


def test_rows_that_do_not_fit_beside_their_own_prefix_are_refused() -> None:
    model = decoder()
    refuse_computing(model)
    wide = FleetJob(random_prefix(model, 60), text_rows(9, 0), text_rows(3, 0), parameters(0), {})
    with pytest.raises(PrefixError, match="job 1: rows: prefix of 60 \\+ input of"):
        train_together(model, [job(model, 0), wide])


def test_a_head_that_is_missing_or_not_the_models_is_refused() -> None:
    model = encoder()
    refuse_computing(model)
    without = job(model, 1)
    object.__setattr__(without, "head", {})
    with pytest.raises(PrefixError, match="job 1: the head: got the tensors none; expected classifier"):
        train_together(model, [job(model, 0), without])


def test_a_base_that_changed_is_found_out() -> None:
    model = decoder()
    first = job(model, 0)

    def change(line: Mapping[str, Any]) -> None:
        with torch.no_grad():
            anatomy(model).base.norm.weight.add_(1)

    object.__setattr__(first, "on_curve", change)
    with pytest.raises(IntegrityError, match="the frozen base changed during training"):
        train_together(model, [first])


def test_the_model_is_left_as_it_was() -> None:
    model = encoder()
    own = {name: id(p) for name, p in model.named_parameters()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    train_together(model, [job(model, 0), job(model, 1)])
    assert {name: id(p) for name, p in model.named_parameters()} == own
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert isinstance(model, transformers.PreTrainedModel)
