"""A prefix for an encoder-decoder is trained as transformers itself would, with every source encoded once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from pipeline.base import base_model
from pipeline.errors import PrefixError, TrainingError
from pipeline.params import TrainingParams
from pipeline.prefix.adapter import adapter_facts, load_adapter
from pipeline.prefix.attention import attach
from pipeline.prefix.lean import lean
from pipeline.prefix.text_start import text_key_values
from pipeline.prefix.tuning import Prefix, PrefixShape
from pipeline.train.batches import SourceTargetRows, generation_rows, part_of
from pipeline.train.fleet import FleetJob, train_together
from pipeline.train.losses import batch_loss
from pipeline.train.start_text import repeated
from tests import training_data
from tests.train.bench import Bench, resolved

SOURCES = [[5, 9, 1], [7, 1], [3, 4, 12, 8, 1], [20, 21, 22, 23, 24, 1]]
TARGETS = [[[8, 6, 1], [9, 1], [9, 10, 11, 12, 1]], [[4, 1]], [[5, 6, 7, 8, 1], [3, 1]], [[1], [7, 8, 1]]]
TOKENS = 23
"""Of all targets."""


@pytest.fixture(params=["t5", "bart"])
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(f"{request.param}_folder")
    return found


@pytest.fixture(scope="session")
def answer_rows(
    t5_folder: Path, bart_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[Path, Path]:
    counts = {"train": 40, "validation": 20}
    return {
        base: training_data.generation_rows(
            tmp_path_factory.mktemp("answers"),
            base_model.tokenizer(resolved(base)),
            counts,
            encoder_decoder=True,
        )
        for base in (t5_folder, bart_folder)
    }


@pytest.fixture
def bench(folder: Path, answer_rows: dict[Path, Path], tmp_path: Path) -> Bench:
    return Bench("generation", resolved(folder), answer_rows[folder], tmp_path)


def rows_for(model: Any) -> SourceTargetRows:
    data = datasets.Dataset.from_dict({"input_ids": SOURCES, "target_ids": TARGETS})
    rows = generation_rows(data, model, pad=model.config.pad_token_id)
    assert isinstance(rows, SourceTargetRows)
    return rows


def random_prefix(model: Any, **more: Any) -> Prefix:
    prefix = Prefix(PrefixShape.of_model(model), 3, **more)
    prefix.init_random(0.5, torch.Generator().manual_seed(0))
    return prefix


def reference(model: Any) -> torch.Tensor:
    """transformers' own mean loss, one padded row for each reference."""
    pad = model.config.pad_token_id
    pairs = [(source, target) for source, group in zip(SOURCES, TARGETS, strict=True) for target in group]
    wide = max(len(source) for source, _ in pairs)
    ids = torch.tensor([source + [pad] * (wide - len(source)) for source, _ in pairs])
    mask = torch.tensor([[1] * len(source) + [0] * (wide - len(source)) for source, _ in pairs])
    wide = max(len(target) for _, target in pairs)
    labels = torch.tensor([target + [-100] * (wide - len(target)) for _, target in pairs])
    loss: torch.Tensor = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    return loss


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("projection", [None, 8])
def test_loss_and_gradients_are_transformers_own_over_a_row_for_each_reference(
    folder: Path, projection: int | None, recompute: bool
) -> None:
    model = base_model.load(resolved(folder), "generation")
    prefix = random_prefix(model, projection=projection)
    with attach(model, prefix):
        expected = reference(model)
        expected.backward()
    gradients = [parameter.grad.clone() for parameter in prefix.parameters()]
    assert all(gradient.abs().max() > 1e-3 for gradient in gradients)
    rows = rows_for(model)
    for pieces in (1, 3):
        prefix.zero_grad()
        total, targets = 0.0, 0
        with attach(model, prefix), lean(model, recompute=recompute):
            for batch in rows.batches(np.arange(4), pieces):
                found = batch_loss(model, batch)
                (found.total / TOKENS).backward()
                total, targets = total + found.total.item(), targets + found.targets
        assert targets == TOKENS
        assert total / TOKENS == pytest.approx(expected.item(), abs=1e-5)
        for parameter, gradient in zip(prefix.parameters(), gradients, strict=True):
            assert (parameter.grad - gradient).abs().max() < 1e-5
    assert all(parameter.grad is None for parameter in model.parameters())


def test_every_layer_of_encoder_decoder_and_cross_attention_gets_a_gradient(folder: Path) -> None:
    model = base_model.load(resolved(folder), "generation")
    prefix = random_prefix(model)
    (batch,) = rows_for(model).batches(np.arange(4), 1)
    with attach(model, prefix), lean(model, recompute=False):
        batch_loss(model, batch).total.backward()
    parts = prefix.shape.per_layer(prefix.vectors.grad)
    assert len(parts) == 6
    assert all(part.abs().max() > 1e-6 for layer in parts for part in layer)


def test_a_source_is_encoded_once_for_all_its_references_and_only_targets_reach_the_head(
    folder: Path,
) -> None:
    model = base_model.load(resolved(folder), "generation")
    seen: dict[str, list[int]] = {"encoder": [], "decoder": [], "head": []}
    for name, module in (
        ("encoder", model.get_encoder()), ("decoder", model.get_decoder()), ("head", model.get_output_embeddings()),
    ):  # fmt: skip
        module.register_forward_hook(
            lambda module, args, output, name=name: seen[name].append(
                (output if name == "head" else output.last_hidden_state).shape[:-1].numel()
            )
        )
    (batch,) = rows_for(model).batches(np.arange(4), 1)
    with attach(model, random_prefix(model)):
        batch_loss(model, batch)
    assert seen["encoder"] == [4 * 6]
    assert seen["decoder"][0] == 8 * 5
    assert seen["head"] == [TOKENS]


def test_recomputing_runs_every_layer_but_the_last_of_each_stack_twice(folder: Path) -> None:
    model = base_model.load(resolved(folder), "generation")
    calls: dict[int, int] = {}
    stacks = [
        getattr(stack, "block" if "t5" in model.config.model_type else "layers")
        for stack in (model.get_encoder(), model.get_decoder())
    ]
    for number, layer in enumerate(layer for stack in stacks for layer in stack):
        inner = next(layer.children())
        inner = inner[0] if isinstance(inner, torch.nn.ModuleList) else inner
        inner.register_forward_hook(
            lambda *_, number=number: calls.update({number: calls.get(number, 0) + 1})
        )
    (batch,) = rows_for(model).batches(np.arange(4), 1)
    with attach(model, random_prefix(model)), lean(model, recompute=True):
        batch_loss(model, batch).total.backward()
    assert calls == {0: 2, 1: 1, 2: 2, 3: 1}


def test_in_bfloat16_the_loss_is_nearly_the_same_and_its_gradient_float32(folder: Path) -> None:
    model = base_model.load(resolved(folder), "generation")
    prefix = random_prefix(model)
    (batch,) = rows_for(model).batches(np.arange(4), 1)
    found = []
    for dtype in ("float32", "bfloat16"):
        prefix.zero_grad()
        with attach(model, prefix), lean(model, recompute=True):
            loss = batch_loss(model, batch, dtype).total
            loss.backward()
        assert loss.dtype == prefix.vectors.grad.dtype == torch.float32
        found.append((loss.item(), prefix.vectors.grad.flatten()))
    (expected, gradient), (rough, nearly) = found
    assert rough != expected
    assert rough == pytest.approx(expected, rel=1e-2)
    assert torch.nn.functional.cosine_similarity(nearly, gradient, dim=0) > 0.99


def test_the_gradients_of_processes_add_up_to_those_of_one(folder: Path) -> None:
    model = base_model.load(resolved(folder), "generation")
    prefix, rows = random_prefix(model), rows_for(model)
    gradients = []
    for size in (1, 3):
        prefix.zero_grad()
        targets = 0
        with attach(model, prefix):
            for rank in range(size):
                for batch in rows.batches(part_of(np.arange(4), rows.lengths, rank, size), 1):
                    found = batch_loss(model, batch)
                    found.total.backward()
                    targets += found.targets
        assert targets == TOKENS
        gradients.append(prefix.vectors.grad.clone() / TOKENS)
    assert (gradients[0] - gradients[1]).abs().max() < 1e-6


def test_a_training_learns_and_its_adapter_has_the_loss_that_was_recorded(bench: Bench) -> None:
    summary = bench.train(epochs=6)
    model = bench.model()
    prefix, head = load_adapter(bench.root / "out" / "adapter", model)
    assert head == {}
    assert adapter_facts(bench.root / "out" / "adapter").task == "generation"
    saved = datasets.load_from_disk(str(bench.prepared / "validation"))
    (batch,) = generation_rows(saved, model, pad=model.config.pad_token_id).batches(np.arange(20), 1)
    with torch.no_grad():
        frozen = batch_loss(model, batch)
        with attach(model, prefix):
            found = batch_loss(model, batch)
    loss = (found.total / found.targets).item()
    assert found.targets == sum(len(target) for group in saved["target_ids"] for target in group)
    assert loss == pytest.approx(summary.best_validation_loss, abs=1e-5)
    assert loss < (frozen.total / frozen.targets).item() - 0.3


def test_pieces_of_a_step_change_nothing_but_the_rounding(bench: Bench) -> None:
    whole, pieces = bench.beside("whole"), bench.beside("pieces")
    whole.train()
    pieces.train(gradient_accumulation=3, gradient_checkpointing=True)
    model = bench.model()
    vectors = [load_adapter(one.root / "out" / "adapter", model)[0].vectors for one in (whole, pieces)]
    assert (vectors[0] - vectors[1]).abs().max() < 1e-4
    for one, other in zip(whole.lines, pieces.lines, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)


def test_a_killed_training_resumes_to_the_same_bytes(
    t5_folder: Path, answer_rows: dict[Path, Path], tmp_path: Path
) -> None:
    bench = Bench("generation", resolved(t5_folder), answer_rows[t5_folder], tmp_path)
    whole, killed = bench.beside("whole"), bench.beside("killed")
    whole.train()
    killed.train_until_killed(7)
    killed.train()
    assert [line["step"] for line in killed.lines if line["kind"] == "step"] == [7, 8, 9, 10]
    assert killed.adapter == whole.adapter


def test_a_text_is_read_by_encoder_and_decoder_and_a_trained_prefix_is_gone_on_from(bench: Bench) -> None:
    summary = bench.train(prefix={"length": 3, "initialisation": "text", "text": "the red cat"}, max_steps=1)
    assert summary.start == {"from": "text", "text": "the red cat", "made_of": "given"}
    model, words = bench.model(), base_model.tokenizer(bench.base)
    ids = words("the red cat", add_special_tokens=False).input_ids
    expected = text_key_values(model, torch.tensor(repeated(ids, 3)))
    prefix, _ = load_adapter(bench.root / "out" / "adapter", model)
    assert (prefix.vectors - expected).abs().max() < 0.11  # one step of Adam at a rate of 0.1
    again = bench.beside("again")
    warm = again.train(
        prefix={"length": 3, "initialisation": "version"}, warm_start=bench.warm(), max_steps=1
    )
    assert (warm.start["from"], warm.start["version"]) == ("version", "1")
    assert (
        load_adapter(again.root / "out" / "adapter", model)[0].vectors - prefix.vectors
    ).abs().max() < 0.11


def test_a_source_or_target_longer_than_the_positions_is_refused_before_anything_is_computed(
    bart_folder: Path, t5_folder: Path, answer_rows: dict[Path, Path], tmp_path: Path
) -> None:
    for name, change in (
        ("sources", {"input_ids": [4] * 64 + [2]}),
        ("targets", {"target_ids": [[4] * 64 + [2]]}),
    ):
        prepared = tmp_path / name
        for split in ("train", "validation"):
            rows = datasets.load_from_disk(str(answer_rows[t5_folder] / split)).to_list()
            rows[3] |= change
            training_data._save(
                prepared / split,
                rows,
                {
                    "source": "string",
                    "targets": ["string"],
                    "input_ids": ["int32"],
                    "target_ids": [["int32"]],
                },
            )
        bench = Bench("generation", resolved(bart_folder), prepared, tmp_path / f"{name} out")
        with pytest.raises(
            PrefixError,
            match=r"train row 3 \(.*\) has 65 tokens, and the base has 64\. Shorten data\.max_tokens",
        ):
            bench.train()
        assert not bench.lines
        # T5 tells distances, of which none is too long.
        long = Bench("generation", resolved(t5_folder), prepared, tmp_path / f"{name} t5")
        assert long.train(max_steps=1).steps == 1


def test_a_fleet_of_encoder_decoders_is_refused(folder: Path) -> None:
    model = base_model.load(resolved(folder), "generation")
    rows = rows_for(model)
    job = FleetJob(random_prefix(model), rows, rows, TrainingParams(), {})
    with pytest.raises(TrainingError, match="is an encoder-decoder, whose prefixes are trained one by one"):
        train_together(model, [job])
