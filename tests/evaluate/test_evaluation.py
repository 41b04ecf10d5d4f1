"""What evaluation writes, against one row at a time through the model, and what it refuses to score."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.base import base_model
from pipeline.data.dataset import load_prepared
from pipeline.data.splits import split_of
from pipeline.digest import manifest
from pipeline.errors import AdapterError, DataError, IntegrityError
from pipeline.evaluate.metrics import figure
from pipeline.evaluate.scored import Scored, read
from pipeline.files import write_json
from pipeline.judge.gate import judge
from pipeline.params import EvaluationParams, GateParams, SplitParams
from pipeline.prefix.adapter import adapter_digest, install_head, load_adapter
from pipeline.prefix.attention import attach
from pipeline.prefix.generation import generate
from tests import evaluation_world, tiny
from tests.evaluation_world import LABELS, World


@pytest.fixture(scope="module")
def texts(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    base = evaluation_world.resolved(encoder_folder)
    return evaluation_world.classification_world(tmp_path_factory.mktemp("texts") / "world", base)


@pytest.fixture(scope="module")
def stories(decoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    base = evaluation_world.resolved(decoder_folder)
    return evaluation_world.generation_world(tmp_path_factory.mktemp("stories") / "world", base)


@pytest.fixture(scope="module")
def scored_texts(texts: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("out") / "evaluation"
    return out, texts.evaluate(out, champion=texts.champion(texts.adapter))


@pytest.fixture(scope="module")
def scored_stories(stories: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("out") / "evaluation"
    return out, stories.evaluate(out, champion=stories.champion(stories.adapter))


def _lines(out: Path, system: str) -> dict[str, dict[str, Any]]:
    lines = pq.read_table(out / "rows.parquet").to_pylist()
    return {line["row_id"]: line for line in lines if line["system"] == system}


def test_the_prefixs_lines_are_those_of_one_row_at_a_time(
    texts: World, scored_texts: tuple[Path, Any]
) -> None:
    _compare_one_by_one(texts, texts.adapter, _lines(scored_texts[0], "prefix"))


def test_heads_that_read_different_states_are_each_scored_as_they_read(texts: World, tmp_path: Path) -> None:
    mean = evaluation_world.adapter(
        tmp_path / "mean", texts.base, "classification", labels=LABELS, pooling="mean"
    )
    out = tmp_path / "out"
    texts.evaluate(out, adapter=mean, champion=texts.champion(texts.adapter))
    _compare_one_by_one(texts, mean, _lines(out, "prefix"), pooling="mean")
    _compare_one_by_one(texts, texts.adapter, _lines(out, "champion"))
    out = tmp_path / "turned"
    texts.evaluate(out, champion=texts.champion(mean))
    _compare_one_by_one(texts, mean, _lines(out, "champion"), pooling="mean")


def _compare_one_by_one(
    texts: World, adapter: Path, lines: dict[str, dict[str, Any]], *, pooling: Any = None
) -> None:
    model = base_model.load(texts.base, "classification", labels=LABELS, pooling=pooling)
    prefix, head = load_adapter(adapter, model)
    install_head(model, head)
    rows = load_prepared(texts.prepared, "test")
    assert len(lines) == len(rows) > 20
    with torch.no_grad(), attach(model, prefix):
        for row in rows:
            log_p = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
            line = lines[row["row_id"]]
            assert line["label"] == row["label"]
            assert line["prediction"] == int(log_p.argmax())
            assert line["confidence"] == pytest.approx(float(log_p.max().exp()), abs=1e-4)
            assert line["loss"] == pytest.approx(-float(log_p[row["label"]]), rel=1e-3, abs=1e-4)
            assert line["slice.town"] == row["slice.town"]
    assert {line["prediction"] for line in lines.values()} == {0, 1, 2}  # the head does tell texts apart


def test_the_bases_lines_are_a_probes_that_has_not_seen_the_test_rows(
    texts: World, scored_texts: tuple[Path, Any]
) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = base_model.load(texts.base, "classification", labels=LABELS)

    def vectors(split: Any) -> tuple[np.ndarray, np.ndarray]:
        rows = load_prepared(texts.prepared, split)
        with torch.no_grad():
            made = [
                model.base_model(input_ids=torch.tensor([row["input_ids"]]))
                .last_hidden_state[0]
                .mean(0)
                .numpy()
                for row in rows
            ]
        return np.stack(made), np.asarray(rows["label"])

    train, validation, test = vectors("train"), vectors("validation"), vectors("test")
    candidates = {
        strength: make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=200)).fit(*train)
        for strength in (0.003, 0.03, 0.3, 3.0)
    }
    chosen = scored_texts[1].probe["strength"]
    accuracy = candidates[chosen].score(*validation)
    assert scored_texts[1].probe["validation_accuracy"] == pytest.approx(accuracy)
    ids = load_prepared(texts.prepared, "test")["row_id"]
    lines = _lines(scored_texts[0], "base")
    expected = candidates[chosen].predict(test[0])
    agreed = [lines[row_id]["prediction"] == each for row_id, each in zip(ids, expected, strict=True)]
    assert np.mean(agreed) > 0.95  # two optimisers' last digits can flip a row on the border
    log_p = candidates[chosen].predict_log_proba(test[0])
    losses = -log_p[np.arange(len(test[1])), test[1]]
    assert [lines[row_id]["loss"] for row_id in ids] == pytest.approx(losses.tolist(), abs=0.02)


def test_an_identical_champion_has_identical_lines_on_all_rows(
    texts: World, scored_texts: tuple[Path, Any]
) -> None:
    out, summary = scored_texts
    ours, theirs = _lines(out, "prefix"), _lines(out, "champion")
    assert {row_id: {**line, "system": ""} for row_id, line in ours.items()} == {
        row_id: {**line, "system": ""} for row_id, line in theirs.items()
    }
    assert summary.champion == {"version": "7", "common_rows": len(ours), "unknown_labels": []}
    gate = GateParams.model_validate({"resamples": 100, "not_worse_than_champion": {"metric": "accuracy"}})
    verdict = judge(out / "rows.parquet", gate, "classification", EvaluationParams())
    assert verdict.passed
    assert verdict.criteria[0].interval == (0, 0)


def test_the_summary_is_of_the_rows_and_json(
    texts: World, scored_texts: tuple[Path, Any], tmp_path: Path
) -> None:
    out, summary = scored_texts
    scored = read(out / "rows.parquet", "classification")
    assert summary.rows == dict.fromkeys(("prefix", "base", "champion"), texts.summary.rows["test"])
    for system in ("prefix", "base", "champion"):
        for metric in ("accuracy", "macro_f1", "calibration_error", "loss"):
            columns = scored.sample(system, metric).columns
            assert summary.systems[system][metric] == figure(metric, "classification", columns)
    assert sum(town["rows"] for town in summary.slices["town"].values()) == summary.rows["prefix"]
    mean = (
        sum(town["rows"] * town["accuracy"] for town in summary.slices["town"].values())
        / summary.rows["prefix"]
    )
    assert mean == pytest.approx(summary.systems["prefix"]["accuracy"])
    assert sum(row["support"] for row in summary.per_class.values()) == summary.rows["prefix"]
    assert tuple(summary.per_class) == summary.labels == LABELS
    assert summary.manifest == manifest(out)
    write_json(tmp_path / "evaluated.json", summary.to_json())


def test_the_samples_are_the_surest_mistakes_then_right_answers(scored_texts: tuple[Path, Any]) -> None:
    samples = json.loads((scored_texts[0] / "samples.json").read_text())
    wrong = [sample for sample in samples if not sample["right"]]
    assert 0 < len(wrong) <= 20
    assert samples[: len(wrong)] == wrong
    assert [sample["confidence"] for sample in wrong] == sorted(
        (s["confidence"] for s in wrong), reverse=True
    )
    for sample in samples:
        assert sample["label"] in sample["text"].split()
        assert (sample["predictions"]["prefix"] == sample["label"]) is sample["right"]
        assert set(sample["predictions"]) == {"prefix", "base", "champion"}


def test_a_champion_with_other_labels_is_mapped_by_name(texts: World, tmp_path: Path) -> None:
    theirs = ("dog", "fish", "cat")
    folder = evaluation_world.adapter(tmp_path / "old", texts.base, "classification", labels=theirs, seed=3)
    summary = texts.evaluate(tmp_path / "out", champion=texts.champion(folder))
    assert summary.champion["unknown_labels"] == ["bird"]
    model = base_model.load(texts.base, "classification", labels=theirs)
    prefix, head = load_adapter(folder, model)
    install_head(model, head)
    lines = _lines(tmp_path / "out", "champion")
    strange = 0
    with torch.no_grad(), attach(model, prefix):
        for row in load_prepared(texts.prepared, "test"):
            log_p = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
            said, label, line = theirs[int(log_p.argmax())], LABELS[row["label"]], lines[row["row_id"]]
            assert line["prediction"] == (LABELS.index(said) if said in LABELS else -1)
            strange += said not in LABELS
            expected = -float(log_p[theirs.index(label)]) if label in theirs else np.log(3)
            assert line["loss"] == pytest.approx(expected, rel=1e-3, abs=1e-4)
            assert label != "bird" or line["prediction"] != line["label"]
    assert strange


def test_a_champion_is_scored_only_on_rows_it_was_not_trained_on(texts: World, tmp_path: Path) -> None:
    splits = SplitParams(train=0.4, validation=0.2, test=0.4, salt="another")
    summary = texts.evaluate(tmp_path / "out", champion=texts.champion(texts.adapter, splits=splits))
    rows = load_prepared(texts.prepared, "test")
    common = {row["row_id"] for row in rows if split_of(row["text"], splits) == "test"}
    assert 0 < len(common) < len(rows)
    assert set(_lines(tmp_path / "out", "champion")) == common
    assert summary.champion["common_rows"] == summary.rows["champion"] == len(common)
    assert summary.rows["prefix"] == len(rows)


def test_a_champion_without_common_rows_is_still_expected_by_the_gate(texts: World, tmp_path: Path) -> None:
    splits = SplitParams(train=0.999998, validation=0.000001, test=0.000001, salt="none")
    summary = texts.evaluate(tmp_path / "out", champion=texts.champion(texts.adapter, splits=splits))
    assert summary.champion["common_rows"] == 0
    assert summary.systems["champion"] == {}
    gate = GateParams.model_validate({"not_worse_than_champion": {"metric": "accuracy"}})
    assert not judge(tmp_path / "out" / "rows.parquet", gate, "classification", EvaluationParams()).passed


def test_a_tampered_champion_is_refused_and_nothing_is_written(texts: World, tmp_path: Path) -> None:
    champion = dataclasses.replace(texts.champion(texts.adapter), adapter_digest="0" * 64)
    with pytest.raises(IntegrityError, match=r"is not the adapter of version 7.*\n.*expected 0000"):
        texts.evaluate(tmp_path / "out", champion=champion)
    missing = dataclasses.replace(texts.champion(texts.adapter), folder=tmp_path / "nowhere")
    with pytest.raises(IntegrityError, match="fetch it again"):
        texts.evaluate(tmp_path / "out", champion=missing)
    assert not (tmp_path / "out").exists()


def test_a_champion_on_another_base_needs_that_base(texts: World, tmp_path: Path) -> None:
    folder = tiny.tiny_encoder(tmp_path / "other", positions=12, seed=1)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    words = vocabulary["model"]["vocab"]
    words["cat"], words["dog"] = words["dog"], words["cat"]
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    other = evaluation_world.resolved(folder, "other")
    old = evaluation_world.adapter(tmp_path / "old", other, "classification", labels=LABELS)
    with pytest.raises(AdapterError, match=r"version 7, in production, was trained on the base model"):
        texts.evaluate(tmp_path / "out", champion=texts.champion(old))
    texts.evaluate(tmp_path / "out", champion=texts.champion(old, base=other))
    model, tokenizer = base_model.load(other, "classification", labels=LABELS), base_model.tokenizer(other)
    prefix, head = load_adapter(old, model)
    install_head(model, head)
    lines = _lines(tmp_path / "out", "champion")
    rows = load_prepared(texts.prepared, "test")
    room = 12 - evaluation_world.LENGTH
    assert len(lines) == len(rows)
    cut = 0
    with torch.no_grad(), attach(model, prefix):
        for row in rows:
            tokens = tokenizer(row["text"]).input_ids
            cut += len(tokens) > room
            tokens = tokens if len(tokens) <= room else [*tokens[: room - 1], tokens[-1]]
            log_p = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
            expected = -float(log_p[row["label"]])
            assert lines[row["row_id"]]["loss"] == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert 0 < cut < len(rows)


def test_an_adapter_with_other_labels_than_the_data_is_refused(texts: World, tmp_path: Path) -> None:
    folder = evaluation_world.adapter(
        tmp_path / "a", texts.base, "classification", labels=("cat", "bird", "dog")
    )
    with pytest.raises(AdapterError, match="has other labels, or in another order, than the prepared data"):
        texts.evaluate(tmp_path / "out", adapter=folder)


def test_an_adapter_that_names_no_labels_is_refused(texts: World, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "peft"
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes((texts.adapter / "adapter_config.json").read_bytes())
    # As PEFT saves it: without prefixline's own facts.
    save_file(load_file(texts.adapter / "adapter_model.safetensors"), folder / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="does not name its labels"):
        texts.evaluate(tmp_path / "out", champion=texts.champion(folder))


def test_an_adapter_for_another_task_is_refused(texts: World, stories: World, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"is for generation; expected classification"):
        texts.evaluate(tmp_path / "out", adapter=stories.adapter)


def test_a_column_that_the_prepared_data_lacks_is_named(texts: World, tmp_path: Path) -> None:
    data = texts.data.model_copy(update={"slices": ("town", "street")})
    with pytest.raises(DataError, match=r"slice\.street: no such column; prepare the data again"):
        texts.evaluate(tmp_path / "out", data=data)


@pytest.mark.parametrize("system", ["prefix", "base"])
def test_losses_and_texts_are_those_of_one_row_at_a_time(
    stories: World, scored_stories: tuple[Path, Any], system: str
) -> None:
    model = base_model.load(stories.base, "generation")
    prefix, _ = load_adapter(stories.adapter, model)
    words = base_model.tokenizer(stories.base)
    lines = _lines(scored_stories[0], system)
    rows = load_prepared(stories.prepared, "test")
    assert len(lines) == len(rows) > 5
    for row in rows:
        nll = 0.0
        for target in row["target_ids"]:
            tokens = torch.tensor([[*row["input_ids"], *target]])
            with torch.no_grad():
                if system == "prefix":
                    with attach(model, prefix):
                        log_p = model(input_ids=tokens).logits[0].log_softmax(-1)
                else:
                    log_p = model(input_ids=tokens).logits[0].log_softmax(-1)
            start = len(row["input_ids"])
            nll -= sum(float(log_p[start + k - 1, token]) for k, token in enumerate(target))
        line = lines[row["row_id"]]
        assert line["nll"] == pytest.approx(nll, rel=1e-5)
        assert line["target_tokens"] == sum(map(len, row["target_ids"]))
        prompt = torch.tensor([row["input_ids"]])
        sequence = generate(
            model, prefix if system == "prefix" else None, prompt, torch.ones_like(prompt),
            max_new_tokens=6, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
        )  # fmt: skip
        assert line["hypothesis"] == words.decode(sequence[0], skip_special_tokens=True).strip()


def test_corpus_figures_of_generation_are_sacrebleus(
    stories: World, scored_stories: tuple[Path, Any]
) -> None:
    from sacrebleu.metrics import BLEU, CHRF

    out, summary = scored_stories
    lines = _lines(out, "prefix")
    rows = load_prepared(stories.prepared, "test").to_list()
    hypotheses = [lines[row["row_id"]]["hypothesis"] for row in rows]
    streams = [[(*row["targets"], None, None)[k] for row in rows] for k in range(3)]
    figures = summary.systems["prefix"]
    assert figures["bleu"] == pytest.approx(BLEU().corpus_score(hypotheses, streams).score)
    assert figures["chrf"] == pytest.approx(CHRF().corpus_score(hypotheses, streams).score)
    assert figures["perplexity"] == pytest.approx(np.exp(figures["loss"]))
    assert figures["loss"] != summary.systems["base"]["loss"]
    assert summary.systems["champion"] == figures
    assert summary.generated_rows == summary.rows
    samples = json.loads((out / "samples.json").read_text())
    assert all(set(sample["hypotheses"]) == {"prefix", "base", "champion"} for sample in samples)
    assert all(sample["source"] and sample["references"] for sample in samples)


def test_only_so_many_rows_are_generated_for_and_the_same_for_all_systems(
    stories: World, tmp_path: Path
) -> None:
    params = EvaluationParams(batch_size=4, max_new_tokens=3, max_generated_rows=3, beams=2)
    summary = stories.evaluate(tmp_path / "out", params=params, champion=stories.champion(stories.adapter))
    assert summary.generated_rows == {"prefix": 3, "base": 3, "champion": 3}
    generated = {
        system: {
            row_id
            for row_id, line in _lines(tmp_path / "out", system).items()
            if line["hypothesis"] is not None
        }
        for system in summary.rows
    }
    assert generated["prefix"] == generated["base"] == generated["champion"]
    assert generated["prefix"] == set(sorted(_lines(tmp_path / "out", "prefix"))[:3])
    scored: Scored = read(tmp_path / "out" / "rows.parquet", "generation")
    assert len(scored.sample("prefix", "bleu").places) == 3
    assert len(scored.sample("prefix", "loss").places) == summary.rows["prefix"]


def test_a_champion_with_another_tokenizer_counts_per_token_of_ours(stories: World, tmp_path: Path) -> None:
    folder = tiny.tiny_decoder(tmp_path / "other", positions=64, seed=2)
    content = json.loads((folder / "tokenizer.json").read_text())
    every_character = {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"] = every_character
    (folder / "tokenizer.json").write_text(json.dumps(content))
    other = evaluation_world.resolved(folder, "other")
    old = evaluation_world.adapter(tmp_path / "old", other, "generation")
    stories.evaluate(tmp_path / "out", champion=stories.champion(old, base=other))
    model, words = base_model.load(other, "generation"), base_model.tokenizer(other)
    prefix, _ = load_adapter(old, model)
    ours, theirs = _lines(tmp_path / "out", "prefix"), _lines(tmp_path / "out", "champion")
    fitting = 0
    with torch.no_grad(), attach(model, prefix):
        for row in load_prepared(stories.prepared, "test"):
            line = theirs[row["row_id"]]
            assert line["target_tokens"] == ours[row["row_id"]]["target_tokens"]
            prompt = words(row["source"] + "\n", add_special_tokens=False).input_ids
            group = [
                [*words(t, add_special_tokens=False).input_ids, words.eos_token_id] for t in row["targets"]
            ]
            assert sum(map(len, group)) > line["target_tokens"]
            if len(prompt) + max(map(len, group)) > 64 - evaluation_world.LENGTH:
                continue
            nll = 0.0
            for target in group:
                log_p = model(input_ids=torch.tensor([[*prompt, *target]])).logits[0].log_softmax(-1)
                nll -= sum(float(log_p[len(prompt) + k - 1, token]) for k, token in enumerate(target))
            assert line["nll"] == pytest.approx(nll, rel=1e-4)
            fitting += 1
    assert fitting


def test_evaluation_gives_the_same_bytes_twice(
    stories: World, scored_stories: tuple[Path, Any], tmp_path: Path
) -> None:
    champion = stories.champion(stories.adapter)
    assert stories.evaluate(tmp_path / "out", champion=champion).manifest == scored_stories[1].manifest
    assert adapter_digest(stories.adapter) == champion.adapter_digest
