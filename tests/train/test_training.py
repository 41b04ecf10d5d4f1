"""What a training learns, leaves as it was, refuses and shows."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from pipeline.base import base_model
from pipeline.base.base_model import head_parameters
from pipeline.digest import manifest
from pipeline.errors import (
    IntegrityError,
    NonFiniteLossError,
    PrefixError,
    TrainingError,
)
from pipeline.params import TrainingParams
from pipeline.prefix.adapter import install_head, load_adapter
from pipeline.prefix.attention import attach
from pipeline.prefix.text_start import text_key_values
from pipeline.prefix.tuning import Prefix, PrefixShape
from pipeline.train.batches import ClassificationRows, GenerationRows
from pipeline.train.losses import batch_loss
from pipeline.train.plan import Plan
from pipeline.train.progress import TrainingProgress
from pipeline.train.start_text import repeated
from pipeline.train.training_loop import Loop
from tests.prefix.models import least
from tests.train.bench import (
    Bench,
    CrashError,
    at_step,
    crash,
)
from tests.training_data import LABELS, classification_rows

# -- what is learnt ------------------------------------------------------------------------------------------


def test_a_generation_prefix_learns_and_moves_at_every_layer(generation: Bench) -> None:
    summary = generation.train(epochs=8, learning_rate=0.3, checkpoint_seconds=1e9)
    losses = [line["loss"] for line in generation.lines if line["kind"] == "validation"]
    assert summary.best_validation_loss < losses[0] - 0.5
    model = generation.model()
    prefix, head = load_adapter(generation.root / "out" / "adapter", model)
    words = base_model.tokenizer(generation.base)(summary.start["text"], add_special_tokens=False).input_ids
    start = text_key_values(model, torch.tensor(repeated(words, 3)))
    assert len(prefix.shape.layers) == 2
    assert least(prefix.shape, prefix.key_values() - start) > 0.05
    assert head == {}


def test_a_classification_prefix_and_its_head_learn(classification: Bench, tmp_path: Path) -> None:
    tokenizer = base_model.tokenizer(classification.base)
    rows = classification_rows(tmp_path / "rows", tokenizer, {"train": 120, "validation": 40})
    bench = Bench("classification", classification.base, rows, tmp_path)
    summary = bench.train(
        epochs=12, patience=None, head_learning_rate=0.03, validations_per_epoch=1, checkpoint_seconds=1e9
    )
    assert summary.best_validation_loss < 0.9  # guessing: log 3 = 1.10
    assert summary.best_validation_accuracy > 0.5
    model = bench.model()
    _, head = load_adapter(tmp_path / "out" / "adapter", model)
    start = head_parameters(model)
    assert head.keys() == start.keys()
    assert all((head[name] - start[name]).abs().max() > 0.01 for name in head)


def test_a_model_whose_head_reads_other_states_than_the_parameters_say_is_refused(
    classification: Bench,
) -> None:
    with pytest.raises(PrefixError, match=r"head_pooling is 'mean', and the head of Bert\S+ reads None"):
        classification.train(head_pooling="mean")
    assert not classification.checkpoints.exists()


@pytest.mark.parametrize("pooling", [None, "mean"])
def test_training_is_what_a_plain_loop_with_transformers_own_loss_gives(
    classification: Bench, pooling: str | None
) -> None:
    """Every step over all rows, so that the order does not matter."""
    classification.pooling = pooling
    classification.train(
        batch_size=40, epochs=4, schedule="constant", warmup=0.0, validations_per_epoch=1, max_grad_norm=0.05,
        weight_decay=0.1, adam_beta1=0.7, adam_beta2=0.9,
    )  # fmt: skip

    model = classification.model()
    rows = datasets.load_from_disk(str(classification.prepared / "train"))
    batch = base_model.tokenizer(classification.base)(list(rows["text"]), padding=True, return_tensors="pt")
    words = base_model.tokenizer(classification.base)(" ".join(LABELS), add_special_tokens=False).input_ids
    prefix = Prefix(PrefixShape.of_model(model), 3)
    prefix.init_from(text_key_values(model, torch.tensor(words)))
    head = list(head_parameters(model).values())
    for parameter in head:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(
        [{"params": prefix.parameters(), "lr": 0.1}, {"params": head, "lr": 0.01}],
        betas=(0.7, 0.9),
        weight_decay=0.1,
    )
    losses = []
    inputs, labels = (batch.input_ids, batch.attention_mask), torch.tensor(rows["label"][:])
    for _ in range(4):
        optimiser.zero_grad()
        with attach(model, prefix):
            if pooling is None:
                loss = model(*inputs, labels=labels).loss
            else:
                states, mask = model.backbone(*inputs).last_hidden_state, batch.attention_mask[..., None]
                means = (states * mask).sum(dim=1) / mask.sum(dim=1)
                loss = torch.nn.functional.cross_entropy(means @ head[0].T + head[1], labels)
            loss.backward()
        torch.nn.utils.clip_grad_norm_([*prefix.parameters(), *head], 0.05)
        optimiser.step()
        losses.append(loss.item())

    ours = [line["loss"] for line in classification.lines if line["kind"] == "step"]
    assert ours == pytest.approx(losses, rel=1e-4)
    assert len(ours) == 4


@pytest.mark.parametrize("length", [3, 9])
def test_dropout_in_training_is_a_plain_loop_whose_prefix_and_head_weights_are_masked(
    classification: Bench, length: int
) -> None:
    """A head that reads masked numbers of a row is one whose weights' columns are masked. Validations drop nothing."""
    start = {"length": length, "initialisation": "random"}
    classification.train(
        prefix=start, batch_size=40, epochs=3, schedule="constant", warmup=0.0, validations_per_epoch=1,
        max_grad_norm=1e9, dropout=0.4, seed=7,
    )  # fmt: skip

    model = base_model.load(classification.base, "classification", labels=LABELS)
    prefix = Prefix(PrefixShape.of_model(model), length)
    prefix.init_random(0.5, torch.Generator().manual_seed(7))
    head = head_parameters(model)
    (weight,) = (parameter for parameter in head.values() if parameter.dim() == 2)
    trained = [prefix.vectors, *head.values()]
    own = [parameter.detach().clone().requires_grad_() for parameter in trained]
    optimiser = torch.optim.AdamW(
        [{"params": own[:1], "lr": 0.1}, {"params": own[1:], "lr": 0.01}], betas=(0.8, 0.95), weight_decay=0.0
    )

    def mask(shape: torch.Size, *draw: int) -> torch.Tensor:
        drawn = np.random.default_rng((7, *draw)).integers(0, 2**16, tuple(shape), np.uint16)
        return torch.from_numpy((drawn / 2**16 >= 0.4).astype(np.float32) / np.float32(0.6))

    def loss(split: str, step: int | None) -> float:
        """The mean over the rows, one after the other; gradients of all that is trained, in a step."""
        rows = datasets.load_from_disk(str(classification.prepared / split))
        batch = base_model.tokenizer(classification.base)(
            list(rows["text"]), padding=True, return_tensors="pt"
        )
        for mine in own:
            mine.grad = torch.zeros_like(mine)
        total = 0.0
        for row, label in enumerate(rows["label"][:]):
            factors: list[Any] = [1.0] * len(own)
            if step is not None:
                factors[0] = mask(prefix.vectors.shape, step, 0, row)
                factors[1:] = [
                    mask(weight[0].shape, step, 1, row) if p is weight else 1.0 for p in head.values()
                ]
            with torch.no_grad():
                for parameter, mine, factor in zip(trained, own, factors, strict=True):
                    parameter.copy_(mine * factor)
            for parameter in trained:
                parameter.requires_grad_(True)
                parameter.grad = None
            with attach(model, prefix):
                one: torch.Tensor = model(
                    input_ids=batch.input_ids[row : row + 1],
                    attention_mask=batch.attention_mask[row : row + 1],
                    labels=torch.tensor([label]),
                ).loss
                one.backward()
            total += one.item()
            for parameter, mine, factor in zip(trained, own, factors, strict=True):
                assert parameter.grad is not None
                assert mine.grad is not None
                mine.grad += parameter.grad * factor / len(rows)
        return total / len(rows)

    losses = []
    for step in (1, 2, 3):
        losses.append(("step", loss("train", step)))
        optimiser.step()
        losses.append(("validation", loss("validation", None)))

    ours = [(line["kind"], line["loss"]) for line in classification.lines]
    assert [kind for kind, _ in ours] == [kind for kind, _ in losses]
    assert [figure for _, figure in ours] == pytest.approx([figure for _, figure in losses], rel=1e-4)


def test_the_pieces_of_a_step_drop_as_the_whole_step_does(bench: Bench) -> None:
    bench.train(dropout=0.3)
    again = bench.beside("in pieces")
    again.train(dropout=0.3, gradient_accumulation=3)
    for whole, pieces in zip(bench.lines, again.lines, strict=True):
        assert pieces["loss"] == pytest.approx(whole["loss"], rel=1e-4)
    plain = bench.beside("without dropout")
    plain.train()
    assert bench.lines[0]["loss"] != pytest.approx(plain.lines[0]["loss"], rel=1e-3)


def test_layers_that_are_recomputed_see_what_was_dropped(bench: Bench) -> None:
    bench.train(dropout=0.3)
    again = bench.beside("recomputed")
    again.train(dropout=0.3, gradient_checkpointing=True)
    for before, after in zip(bench.lines, again.lines, strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-6)


@pytest.mark.parametrize("pieces", [2, 3, 8])
def test_accumulated_pieces_have_the_gradient_of_one_big_batch(
    generation: Bench, pieces: int, tmp_path: Path
) -> None:
    """Sources with one to three references of different lengths: pieces have unequal numbers of targets."""

    def first_gradient(accumulation: int) -> tuple[float, torch.Tensor]:
        model = generation.model()
        prefix = Prefix(PrefixShape.of_model(model), 3)
        prefix.init_random(0.5, torch.Generator().manual_seed(0))
        rows = GenerationRows(datasets.load_from_disk(str(generation.prepared / "train")), pad=0)
        found: list[Any] = []

        def on_curve(line: Mapping[str, Any]) -> None:
            if line["kind"] == "step":
                assert prefix.vectors.grad is not None
                found.append((line["loss"], prefix.vectors.grad.clone()))

        folder = tmp_path / str(accumulation)
        folder.mkdir()
        params = TrainingParams(
            batch_size=16, gradient_accumulation=accumulation, max_steps=1, max_grad_norm=1e9
        )
        with attach(model, prefix):
            Loop(
                model, {"prefix": dict(prefix.named_parameters())}, rows=rows, validation=rows, params=params,
                folder=folder, identity="", on_curve=on_curve, unit="tokens",
            ).run()  # fmt: skip
        (result,) = found
        return result

    whole, gradient = first_gradient(1)
    loss, accumulated = first_gradient(pieces)
    assert loss == pytest.approx(whole, rel=1e-6)
    assert gradient.abs().max() > 1e-3
    assert (accumulated - gradient).abs().max() <= 1e-6


def test_gradient_checkpointing_trains_the_same_prefix(bench: Bench) -> None:
    bench.train()
    again = bench.beside("recomputed")
    model = again.model()
    forwards = {name: module.__dict__.get("forward") for name, module in model.named_modules()}
    again.train(model=model, gradient_checkpointing=True)
    assert {name: module.__dict__.get("forward") for name, module in model.named_modules()} == forwards
    for before, after in zip(bench.lines, again.lines, strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-6)


def test_bfloat16_trains_nearly_the_same_prefix_and_is_validated_in_float32(bench: Bench) -> None:
    bench.train(max_steps=1)
    again = bench.beside("bfloat16")
    summary = again.train(max_steps=1, dtype="bfloat16")
    (before, _), (after, validation) = bench.lines, again.lines
    assert after["loss"] == pytest.approx(before["loss"], rel=1e-2)
    assert after["loss"] != before["loss"]
    model = again.model()
    prefix, head = load_adapter(again.root / "out" / "adapter", model)
    assert all(parameter.dtype == torch.float32 for parameter in prefix.parameters())
    install_head(model, head)
    rows = datasets.load_from_disk(str(again.prepared / "validation"))
    split = ClassificationRows(rows, pad=0) if again.labels else GenerationRows(rows, pad=0, model=model)
    with torch.no_grad(), attach(model, prefix):
        (piece,) = [batch_loss(model, batch) for batch in split.batches(np.arange(len(rows)), 1)]
    assert validation["loss"] == pytest.approx(piece.total.item() / piece.targets, rel=1e-6)
    assert summary.best_validation_loss == validation["loss"]


def test_the_best_prefix_is_kept_and_its_loss_is_the_one_reported(bench: Bench) -> None:
    rate, epochs = (3.0, 4) if bench.labels else (1.0, 16)
    summary = bench.train(
        learning_rate=rate, epochs=epochs, checkpoint_seconds=1e9, schedule="constant", patience=None
    )
    validations = {line["step"]: line["loss"] for line in bench.lines if line["kind"] == "validation"}
    assert summary.best_validation_loss == min(validations.values())
    assert validations[summary.best_step] == summary.best_validation_loss
    assert summary.best_step < summary.steps  # at this learning rate it gets worse again

    model = bench.model()
    prefix, head = load_adapter(bench.root / "out" / "adapter", model)
    install_head(model, head)
    total, targets = 0.0, 0
    for row in datasets.load_from_disk(str(bench.prepared / "validation")):
        ids = (
            [row["input_ids"] + t for t in row["target_ids"]] if bench.labels is None else [row["input_ids"]]
        )
        for sequence in ids:
            given = torch.tensor([sequence])
            labels = torch.tensor([row["label"]]) if bench.labels else given.clone()
            if bench.labels is None:
                labels[0, : len(row["input_ids"])] = -100
            counted = 1 if bench.labels else len(sequence) - len(row["input_ids"])
            with torch.no_grad(), attach(model, prefix):
                total += model(input_ids=given, labels=labels).loss.item() * counted
            targets += counted
    assert total / targets == pytest.approx(summary.best_validation_loss, rel=1e-4)


def test_training_stops_early_when_validations_do_not_get_better(generation: Bench) -> None:
    summary = generation.train(learning_rate=30.0, epochs=50, patience=2, schedule="constant")
    validations = [line["loss"] for line in generation.lines if line["kind"] == "validation"]
    assert summary.stopped == "patience"
    assert summary.steps < 250
    assert min(validations) == validations[-3] == summary.best_validation_loss


def test_max_steps_ends_the_epochs_sooner_with_a_validation(classification: Bench) -> None:
    summary = classification.train(max_steps=4)
    assert (summary.steps, summary.stopped) == (4, "max_steps")
    assert [line["step"] for line in classification.lines if line["kind"] == "validation"] == [3, 4]


def test_equal_seeds_give_equal_bytes_and_others_do_not(bench: Bench) -> None:
    first, second, other = (bench.beside(name) for name in ("first", "second", "other"))
    first.train()
    second.train()
    other.train(seed=1)
    assert first.adapter == second.adapter != other.adapter


@pytest.mark.parametrize(
    "prefix",
    [
        {"length": 3, "initialisation": "random"},
        {"length": 3, "initialisation": "random", "projection": 8},
        {"length": 3, "initialisation": "text", "text": "the red cat"},
        {"length": 3, "initialisation": "text", "projection": 8},
    ],
)
def test_every_way_to_start_trains_and_is_folded_into_plain_vectors(
    classification: Bench, prefix: dict[str, Any]
) -> None:
    summary = classification.train(prefix=prefix, max_steps=2)
    saved, _ = load_adapter(classification.root / "out" / "adapter", classification.model())
    assert saved.projection is None
    assert summary.start == (
        {"from": "random", "scale": 0.5}
        if prefix.get("initialisation") == "random"
        else {"from": "text", "text": "the red cat", "made_of": "given"}
        if "text" in prefix
        else {"from": "text", "text": "cat dog bird", "made_of": "labels"}
    )
    # vectors, or an embedding and two layers with their biases; then the head
    plain = 2 * 2 * 3 * 32
    projected = 3 * 32 + (32 * 8 + 8) + (8 * 128 + 128)
    assert summary.trainable_parameters == (projected if "projection" in prefix else plain) + 3 * 32 + 3


def test_the_summary_counts_and_names_what_there_is(classification: Bench) -> None:
    summary = classification.train(patience=None)
    model = classification.model()
    out = classification.root / "out"
    assert summary.manifest == manifest(out)
    assert sorted(summary.manifest) == [
        "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "curves.jsonl",
    ]  # fmt: skip
    assert summary.base_parameters == sum(parameter.numel() for parameter in model.base_model.parameters())
    assert (summary.steps, summary.stopped, summary.start["text"]) == (10, "epochs", "cat dog bird")
    assert json.loads(json.dumps(summary.to_json())) == summary.to_json()


# -- the base never changes ----------------------------------------------------------------------------------


def test_the_model_is_left_bit_for_bit_as_it_was_head_included(bench: Bench) -> None:
    model = bench.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    summary = bench.train(model=model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert summary.base_digest_before == summary.base_digest_after == base_model.weights_digest(model)


def test_a_base_that_changed_during_training_is_an_integrity_error_and_keeps_nothing(bench: Bench) -> None:
    model = bench.model()
    weight = next(model.base_model.parameters())

    def change() -> None:
        with torch.no_grad():
            weight[5, 5] += 1e-6

    with pytest.raises(IntegrityError, match="the frozen base changed during training"):
        bench.train(model=model, on_curve=at_step(4, change))
    assert not (bench.root / "out").exists()
    assert not (bench.checkpoints / "finished").exists()


# -- refusals ------------------------------------------------------------------------------------------------


def test_a_loss_or_gradient_that_is_not_finite_stops_with_step_rate_and_advice(bench: Bench) -> None:
    what = (
        r"step 2 of 10: the loss is \S+ and the gradient's norm nan, at learning rate 1e\+37.*Lower training"
    )
    with pytest.raises(NonFiniteLossError, match=what):
        bench.train(learning_rate=1e37, head_learning_rate=1e37, warmup=0.0, schedule="constant")
    from safetensors.torch import load_file

    kept = list(bench.checkpoints.glob("step-*/content/state.safetensors"))
    assert len(kept) == 1
    assert all(torch.isfinite(tensor).all() for tensor in load_file(kept[0]).values())
    assert not (bench.root / "out").exists()


def test_a_validation_loss_that_is_not_finite_stops_and_keeps_nothing(classification: Bench) -> None:
    with pytest.raises(NonFiniteLossError, match="step 1 of 1: the validation loss is nan, at learning rate"):
        classification.train(
            learning_rate=1e37, head_learning_rate=1e37, warmup=0.0, schedule="constant", max_steps=1
        )
    assert not list(classification.checkpoints.glob("step-*"))
    assert not (classification.root / "out").exists()


def test_numbers_that_are_not_finite_are_never_kept_in_a_checkpoint(classification: Bench) -> None:
    interrupt = at_step(1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(NonFiniteLossError, match="step 1 of 10: the trained numbers are not finite"):
        classification.train(learning_rate=1e37, weight_decay=1e5, warmup=0.0, on_curve=interrupt)
    assert not list(classification.checkpoints.glob("step-*"))


def test_a_prefix_that_leaves_too_little_window_is_refused_before_anything_is_done(
    classification: Bench,
) -> None:
    longest = max(map(len, datasets.load_from_disk(str(classification.prepared / "train"))["input_ids"]))
    length = 64 - longest
    classification.beside("fits").train(prefix={"length": length}, max_steps=1)
    with pytest.raises(
        PrefixError, match=rf"row \d+ \(\w{{64}}\) has {longest} tokens.*65 positions.*has 64"
    ):
        classification.train(prefix={"length": length + 1})
    assert [path.name for path in classification.checkpoints.iterdir()] == ["lock"]


def test_a_split_without_rows_is_refused(classification: Bench, tmp_path: Path) -> None:
    shutil.copytree(classification.prepared / "train", tmp_path / "prepared" / "train")
    rows = datasets.load_from_disk(str(classification.prepared / "validation"))
    rows.select([]).save_to_disk(str(tmp_path / "prepared" / "validation"))
    empty = Bench("classification", classification.base, tmp_path / "prepared", tmp_path / "empty")
    with pytest.raises(TrainingError, match="validation has no rows"):
        empty.train()


# -- schedule ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.06, 0.5])
def test_the_schedule_is_transformers_own_begun_one_step_later(schedule: Any, warmup: float) -> None:
    from transformers import get_scheduler

    plan = Plan.of(TrainingParams(schedule=schedule, warmup=warmup, epochs=2, batch_size=1), 50)
    names = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = get_scheduler(
        names[schedule], optimiser, num_warmup_steps=round(warmup * 100), num_training_steps=101
    )
    for step in range(1, 101):
        optimiser.step()
        reference.step()
        assert plan.rate(step) == pytest.approx(reference.get_last_lr()[0], abs=1e-9)
    assert plan.rate(1) > 0


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"epochs": 2}, [5, 10]),
        ({"epochs": 2, "validations_per_epoch": 2}, [3, 5, 8, 10]),
        ({"epochs": 1, "validations_per_epoch": 100}, [1, 2, 3, 4, 5]),
        ({"epochs": 2, "max_steps": 7}, [5, 7]),
    ],
)
def test_validations_are_spread_over_the_epoch_and_one_is_at_the_end(
    training: dict[str, Any], expected: list[int]
) -> None:
    plan = Plan.of(TrainingParams.model_validate({"batch_size": 8, **training}), 40)
    assert [step for step in range(1, plan.total + 1) if plan.validates_after(step)] == expected


# -- going on from an adapter --------------------------------------------------------------------------------


def test_a_warm_start_begins_where_the_version_ended_head_included(bench: Bench) -> None:
    first = bench.train()
    again = bench.beside("again")
    second = again.train(
        warm_start=bench.warm(), prefix={"length": 3, "initialisation": "version"}, max_steps=1,
        learning_rate=1e-12, head_learning_rate=1e-12,
    )  # fmt: skip
    assert second.best_validation_loss == pytest.approx(first.best_validation_loss, abs=1e-5)
    expected = {
        "from": "version",
        "prefix": "words",
        "version": "1",
        "adapter_digest": bench.warm().adapter_digest,
    }
    assert second.start == expected | ({"head": "continued"} if bench.labels else {})


def test_a_warm_start_resumes_to_the_same_bytes_and_is_part_of_what_a_checkpoint_belongs_to(
    classification: Bench,
) -> None:
    classification.train(max_steps=3)
    warm, prefix = classification.warm(), {"length": 3, "initialisation": "version"}
    whole, killed = classification.beside("whole"), classification.beside("killed")
    summary = whole.train(warm_start=warm, prefix=prefix)
    with pytest.raises(CrashError):
        killed.train(warm_start=warm, prefix=prefix, on_curve=at_step(6, crash))
    with pytest.raises(TrainingError, match="a training with other settings"):
        killed.train(warm_start=None, prefix=prefix)
    killed.train(warm_start=warm, prefix=prefix)
    assert killed.adapter == whole.adapter
    assert whole.train(warm_start=warm, prefix=prefix) == summary  # finished: only written again


# -- what is shown -------------------------------------------------------------------------------------------


def test_the_curve_can_be_followed_while_it_grows(classification: Bench) -> None:
    def compare(line: Mapping[str, Any]) -> None:
        last = (classification.checkpoints / "curves.jsonl").read_text().splitlines()[-1]
        assert json.loads(last) == line

    classification.train(on_curve=compare)
    steps = [line for line in classification.lines if line["kind"] == "step"]
    assert len(steps) == 10
    keys = ["kind", "step", "epoch", "loss", "learning_rate", "grad_norm", "targets_per_second", "seconds"]
    assert sorted(steps[0]) == sorted(keys)
    assert [line["epoch"] for line in steps] == [pytest.approx(step / 5) for step in range(1, 11)]
    assert (classification.root / "out" / "curves.jsonl").read_text().count("\n") == 14


def test_threads_are_set_for_the_training_alone(classification: Bench) -> None:
    seen: list[int] = []
    classification.train(threads=2, max_steps=1, on_curve=lambda line: seen.append(torch.get_num_threads()))
    assert set(seen) == {2}
    assert torch.get_num_threads() == 1


def test_without_a_terminal_progress_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(np.arange(0.0, 1000.0, 1.0))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with TrainingProgress(100, unit="examples") as progress:
        for step in range(1, 101):
            progress.step(step, loss=1.5, rate=1234.5)
        progress.say("the end")
    lines = capsys.readouterr().err.splitlines()
    assert 4 <= len(lines) <= 8
    assert lines[0].endswith("/100  loss 1.5000  1,234 examples/s")
    assert lines[-1] == "the end"


def test_in_a_terminal_progress_is_a_bar_with_loss_and_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with TrainingProgress(10, unit="tokens") as progress:
        progress.step(4, loss=2.25, rate=50)
        progress.say("a line that stays")
    shown = capsys.readouterr().err
    assert "4/10" in shown
    assert "loss 2.2500  50 tokens/s" in shown
    assert "a line that stays" in shown
