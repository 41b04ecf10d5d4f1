"""The methods on an encoder-decoder: what PEFT computes where its pass is right, trained by our loop."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.base import base_model
from pipeline.base.base_files import identity_files
from pipeline.base.base_model import weights_digest
from pipeline.compare import comparison, peft_models, serving, trainer, worker
from pipeline.compare.job import ARTEFACT, RECORD, RESULT, ROWS, SCORED, Job, Setting
from pipeline.data.dataset import load_prepared
from pipeline.digest import digest
from pipeline.errors import CompareError
from pipeline.params import PrefixParams
from pipeline.prefix.attention import attach
from pipeline.prefix.generation import generate
from pipeline.train.batches import generation_rows, validation_batches
from pipeline.train.losses import batch_loss
from tests.compare.world import setting, written
from tests.evaluation_world import resolved
from tests.line import make_line
from tests.tiny import WORDS

PREFIX = PrefixParams(length=4)
RATES = {"prefix": 0.1, "prompt": 0.1, "ptuning": 0.01, "lora": 0.02}
SOURCES = [[5, 9, 2], [7, 2], [8, 4, 12, 8, 2]]
TARGETS = [[[8, 6, 2], [9, 2]], [[4, 2]], [[5, 6, 7, 8, 2]]]


@pytest.fixture(params=["t5", "bart"])
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(f"{request.param}_folder")
    return found


def moved(name: str, folder: Path) -> peft_models.Adapted:
    """The method on a new base, as after some training: LoRA starts without any effect."""
    model = base_model.load(resolved(folder), "generation")
    adapted = peft_models.put_on(name, model, "generation", PREFIX, seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.own.values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return adapted


def padded(pad: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A row for each target: sources, mask and labels."""
    pairs = [(source, target) for source, group in zip(SOURCES, TARGETS, strict=True) for target in group]
    ids = torch.tensor([source + [pad] * (5 - len(source)) for source, _ in pairs])
    mask = torch.tensor([[1] * len(source) + [0] * (5 - len(source)) for source, _ in pairs])
    return ids, mask, torch.tensor([target + [-100] * (5 - len(target)) for _, target in pairs])


@pytest.mark.parametrize("name", ["prompt", "ptuning", "lora"])
def test_losses_gradients_and_texts_are_those_of_pefts_own_pass(
    folder: Path, tmp_path: Path, name: str
) -> None:
    adapted = moved(name, folder)
    model, pad = adapted.model, adapted.model.config.pad_token_id
    adapted.save(tmp_path / "saved", "tiny")
    rows = generation_rows(
        datasets.Dataset.from_dict({"input_ids": SOURCES, "target_ids": TARGETS}), model, pad=pad, padded=True
    )
    (batch,) = rows.batches(np.arange(3), 1)
    found = batch_loss(model, batch)
    (found.total / found.targets).backward()
    gradients = [parameter.grad for parameter in adapted.own.values()]

    other = moved(name, folder)
    for stack in (other.model.get_encoder(), other.model.get_decoder()):
        stack._forward_pre_hooks.clear()  # PEFT's own way in
    theirs = other.peft_model
    ids, mask, labels = padded(pad)
    shifted = theirs.get_base_model().prepare_decoder_input_ids_from_labels(labels)
    logits = theirs(input_ids=ids, attention_mask=mask, decoder_input_ids=shifted).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    loss.backward()
    assert found.total.item() / found.targets == pytest.approx(loss.item(), abs=1e-5)
    for ours, parameter in zip(gradients, other.own.values(), strict=True):
        assert (ours - parameter.grad).abs().max() < 1e-5
    assert any(gradient.abs().max() > 1e-4 for gradient in gradients)

    again = peft_models.load(base_model.load(resolved(folder), "generation"), tmp_path / "saved")
    settings = {"max_new_tokens": 6, "eos_token_id": 2, "pad_token_id": pad}
    written = generate(again, None, ids, mask, **settings)
    forced = theirs.get_base_model().generation_config.forced_bos_token_id
    expected = theirs.generate(
        input_ids=ids, attention_mask=mask, do_sample=False, forced_bos_token_id=forced, forced_eos_token_id=None,
        **settings,
    )[:, 1:]  # fmt: skip
    assert torch.equal(written, expected)
    before = weights_digest(base_model.load(resolved(folder), "generation"))
    assert weights_digest(adapted.bare()) == before


@pytest.fixture(scope="module")
def shared(t5_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return setting(tmp_path_factory.mktemp("compare") / "a", t5_folder, "generation")


@pytest.mark.parametrize("name", list(RATES))
def test_the_artefact_has_the_loss_that_was_recorded_and_scores_and_answers(
    shared: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    job = Job(shared, name, RATES[name], 1)
    folder = written(job, tmp_path)
    trainer.run(job, folder)
    record = json.loads((folder / RESULT / "content" / RECORD).read_text())
    assert (folder / RESULT / "content" / ARTEFACT).is_dir()
    ready = serving.loaded(job, folder, base_model.load(shared.resolve(), "generation"))
    if ready.prefix is not None:
        attach(ready.model, ready.prefix)
    rows = generation_rows(load_prepared(shared.prepared, "validation"), ready.model, pad=0)
    with torch.no_grad():
        pieces = [batch_loss(ready.model, batch) for batch in validation_batches(rows)]
    loss = sum(float(piece.total) for piece in pieces) / sum(piece.targets for piece in pieces)
    assert loss == pytest.approx(record["validation_loss"], abs=1e-5)
    serving.score(job, folder)
    lines = pq.read_table(folder / SCORED / "content" / ROWS).to_pylist()
    assert len(lines) == len(load_prepared(shared.prepared, "test"))
    assert all(line["hypothesis"] is not None and line["nll"] > 0 for line in lines)
    monkeypatch.setattr(serving, "ROUNDS", 2)
    assert {method: len(times) for method, times in serving.latencies([(job, folder)]).items()} == {
        name: 2,
        "base": 2,
    }


PARAMS = """\
base_models:
  bart:
    source: {{path: "{base}"}}
    digest: {digest}
prefixes:
  words:
    base_model: bart
    task: generation
    data: {{path: data/words.jsonl}}
    prefix: {{length: 60}}
"""


def test_a_soft_prompt_that_does_not_fit_in_front_of_the_sources_is_refused_before_anything_is_trained(
    bart_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = make_line(tmp_path, count=2)
    base = digest(identity_files(bart_folder))
    (line.root / "params.yaml").write_text(PARAMS.format(base=bart_folder, digest=base))
    sources = [" ".join(WORDS[i : i + 5]) for i in range(len(WORDS) - 5)]
    line.write_rows([{"source": source, "target": "cat"} for source in sources])
    monkeypatch.setattr(worker, "start", lambda *_, **__: pytest.fail("something was started"))
    out = tmp_path / "out"
    message = r"prompt, ptuning: 60 virtual tokens in front of a source of 7 need 67 positions, .* has 64\. Set data\.max_tokens to 4"
    with pytest.raises(CompareError, match=message):
        comparison.compare(line.root, "words", out=out, say=lambda text: None)
    assert not (out / "trainings").exists()
    # The others take none of those positions, and are begun.
    with pytest.raises(pytest.fail.Exception, match="something was started"):
        comparison.compare(line.root, "words", names=["prefix", "lora"], out=out, say=lambda text: None)
