"""An encoder-decoder's losses and texts are those of transformers on one row at a time."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import GenerationConfig

from pipeline.base import base_model
from pipeline.data.dataset import load_prepared
from pipeline.evaluate import scoring
from pipeline.params import EvaluationParams
from pipeline.prefix.adapter import load_adapter
from pipeline.prefix.attention import attach
from tests import evaluation_world, tiny
from tests.evaluation_world import World


@pytest.fixture(scope="module", params=["t5", "bart"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    base = evaluation_world.resolved(request.getfixturevalue(f"{request.param}_folder"))
    return evaluation_world.generation_world(tmp_path_factory.mktemp(request.param) / "world", base)


@pytest.fixture(scope="module")
def decoder_world(decoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    base = evaluation_world.resolved(decoder_folder)
    return evaluation_world.generation_world(tmp_path_factory.mktemp("decoder") / "world", base)


def lines(out: Path, system: str) -> dict[str, dict[str, Any]]:
    table = pq.read_table(out / "rows.parquet", filters=[("system", "=", system)]).to_pylist()
    return {line["row_id"]: line for line in table}


@pytest.mark.parametrize("beams", [1, 3])
def test_losses_and_texts_are_those_of_one_row_at_a_time(world: World, tmp_path: Path, beams: int) -> None:
    params = EvaluationParams(batch_size=8, max_new_tokens=6, beams=beams)
    summary = world.evaluate(tmp_path / "out", params=params, champion=world.champion(world.adapter))
    model = base_model.load(world.base, "generation")
    prefix, _ = load_adapter(world.adapter, model)
    words = base_model.tokenizer(world.base)
    settings = GenerationConfig(
        max_new_tokens=6,
        num_beams=beams,
        do_sample=False,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        decoder_start_token_id=model.config.decoder_start_token_id,
        forced_bos_token_id=model.generation_config.forced_bos_token_id,
    )
    model.generation_config = GenerationConfig()
    rows = load_prepared(world.prepared, "test")
    assert len(rows) > 5
    for system in ("prefix", "base"):
        found = lines(tmp_path / "out", system)
        total, texts = 0.0, []
        with attach(model, prefix) if system == "prefix" else nullcontext(), torch.no_grad():
            for row in rows:
                source = torch.tensor([row["input_ids"]])
                nll = 0.0
                for target in row["target_ids"]:
                    labels = torch.tensor([target])
                    nll += model(input_ids=source, labels=labels).loss.item() * len(target)
                line = found[row["row_id"]]
                assert line["nll"] == pytest.approx(nll, rel=1e-5)
                assert line["target_tokens"] == sum(map(len, row["target_ids"]))
                written = model.generate(
                    input_ids=source, attention_mask=torch.ones_like(source), generation_config=settings
                )
                texts.append(words.decode(written[0], skip_special_tokens=True).strip())
                assert line["hypothesis"] == texts[-1]
                total += nll
        assert len(set(texts)) > 1
        tokens = sum(len(target) for row in rows for target in row["target_ids"])
        assert summary.systems[system]["loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert summary.systems["champion"] == summary.systems["prefix"]
    assert summary.systems["prefix"]["loss"] != summary.systems["base"]["loss"]
    samples = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert all(set(sample["hypotheses"]) == {"prefix", "base", "champion"} for sample in samples)


def test_losses_do_not_depend_on_how_many_logits_are_computed_at_a_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = base_model.load(world.base, "generation")
    sources = [[5, 6, 2], [7, 2], [8, 9, 10, 11, 2]]
    targets = [[[6, 2]], [[7, 8, 9, 2], [5, 2], [2]], [[4, 2]]]
    whole = scoring.target_losses(model, None, sources, targets, 8, what="rows")
    monkeypatch.setattr(scoring, "_LOGITS", 1)
    assert scoring.target_losses(model, None, sources, targets, 1, what="rows") == pytest.approx(
        whole, rel=1e-5
    )


def test_a_source_is_encoded_once_for_all_its_references(world: World) -> None:
    model = base_model.load(world.base, "generation")
    encoded: list[int] = []
    model.get_encoder().register_forward_hook(
        lambda module, args, output: encoded.append(len(output.last_hidden_state))
    )
    targets = [[[6, 2]], [[7, 8, 9, 2], [5, 2], [2]], [[4, 2], [9, 2]]]
    scoring.target_losses(model, None, [[5, 6, 2], [7, 2], [8, 9, 10, 2]], targets, 2, what="rows")
    assert encoded == [2, 1]


def test_an_answer_is_cut_where_the_positions_end_whatever_the_source_has(bart_folder: Path) -> None:
    base = evaluation_world.resolved(bart_folder)
    model, words = base_model.load(base, "generation"), base_model.tokenizer(base)
    words.add_special_tokens({"eos_token": "north"})  # an end that the model does not reach
    for source in ([5], [5] * 64):
        (text,) = scoring.generated(
            model, None, [source], words, batch_size=1, max_new_tokens=500, beams=1, reserved=4, what="rows"
        )
        assert 40 < len(text.split()) <= 63


def test_a_decoder_and_an_encoder_decoder_are_judged_against_each_other(
    world: World, decoder_world: World, tmp_path: Path
) -> None:
    """The version in production may have a base of the other kind: its rows are made anew, and counted alike."""
    for ours, theirs in ((world, decoder_world), (decoder_world, world)):
        out = tmp_path / ours.task / ours.base.folder.name
        summary = ours.evaluate(out, champion=theirs.champion(theirs.adapter, base=theirs.base))
        mine, other = lines(out, "prefix"), lines(out, "champion")
        alone = theirs.evaluate(tmp_path / "alone" / ours.base.folder.name)
        assert summary.champion is not None
        assert summary.champion["common_rows"] == len(other) == len(mine)
        assert all(other[row]["target_tokens"] == mine[row]["target_tokens"] for row in mine)
        assert math.isfinite(summary.systems["champion"]["loss"])
        own = lines(tmp_path / "alone" / ours.base.folder.name, "prefix")
        assert alone.rows["prefix"] == len(own)
        assert own.keys() == other.keys()
        for row, line in other.items():
            assert line["nll"] == pytest.approx(own[row]["nll"], rel=1e-5)
            assert line["hypothesis"] == own[row]["hypothesis"]


def test_a_version_in_production_whose_base_has_no_limit_is_scored_on_every_row_uncut(
    decoder_world: World, tmp_path: Path
) -> None:
    base = evaluation_world.resolved(tiny.tiny_t5(tmp_path / "base", positions=None))
    assert base_model.window(base) is None
    adapter = evaluation_world.adapter(tmp_path / "adapter", base, "generation")
    summary = decoder_world.evaluate(tmp_path / "out", champion=decoder_world.champion(adapter, base=base))
    model, words = base_model.load(base, "generation"), base_model.tokenizer(base)
    prefix, _ = load_adapter(adapter, model)
    found = lines(tmp_path / "out", "champion")
    rows = load_prepared(decoder_world.prepared, "test")
    assert summary.rows["champion"] == len(rows)
    with attach(model, prefix), torch.no_grad():
        for row in rows:
            source = torch.tensor([words(row["source"]).input_ids])
            labels = [torch.tensor([words(target).input_ids]) for target in row["targets"]]
            nll = sum(model(input_ids=source, labels=one).loss.item() * one.numel() for one in labels)
            assert found[row["row_id"]]["nll"] == pytest.approx(nll, rel=1e-5)
