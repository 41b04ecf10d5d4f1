"""A registered version predicts what the model with the prefix predicts, and refuses what is not its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from pipeline.base import base_model
from pipeline.errors import BaseModelError, IntegrityError, PrefixError
from pipeline.params import BaseModelParams
from pipeline.prefix.adapter import install_head, load_adapter
from pipeline.prefix.attention import attach
from pipeline.prefix.generation import generate
from pipeline.register import registration
from pipeline.register.registry import start_run
from pipeline.serve.serving import Predictor
from tests import mlflow_world, tiny
from tests.mlflow_world import LABELS, TEXTS

KEY = "1" * 64


class World:
    """A workspace with a base, an adapter on it, and its record."""

    def __init__(
        self, root: Path, task: str, build: Callable[[Path], Path] | None = None, *, pooling: Any = None
    ) -> None:
        self.root = root
        self.task = task
        self.pooling = pooling
        build = build or (tiny.tiny_encoder if task == "classification" else tiny.tiny_decoder)
        build(root / "models" / "base")
        self.base = mlflow_world.base_record(root / "models" / "base", root)
        self.adapter = mlflow_world.adapter(self.base, task, root, root / "adapter", pooling=pooling)

    def record(self, run_id: str = "6" * 32, **changes: Any) -> Any:
        return mlflow_world.record(self.adapter, run_id, KEY, self.base, self.task, **changes)

    def predictor(self, **changes: Any) -> Predictor:
        return Predictor(self.record(**changes), self.adapter, self.root)

    def model(self) -> tuple[Any, Any, Any]:
        """The base with the head installed, the prefix, and the tokenizer: the reference."""
        params = BaseModelParams(source=self.base["source"], digest=self.base["digest"])
        found = base_model.resolve("tiny", params, self.root)
        labels = LABELS if self.task == "classification" else None
        model = base_model.load(found, self.task, labels=labels, pooling=self.pooling)
        prefix, head = load_adapter(self.adapter, model)
        install_head(model, head)
        return model, prefix, base_model.tokenizer(found)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("classifier"), "classification")


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("generator"), "generation")


@pytest.fixture(scope="module", params=["t5", "bart"])
def answerer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """On an encoder-decoder."""
    build = tiny.tiny_t5 if request.param == "t5" else tiny.tiny_bart
    return World(tmp_path_factory.mktemp(request.param), "generation", build)


@pytest.fixture(scope="module")
def mean_classifier(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("mean"), "classification", pooling="mean")


@pytest.mark.parametrize("which", ["classifier", "mean_classifier"])
def test_probabilities_are_those_of_each_text_alone(request: pytest.FixtureRequest, which: str) -> None:
    world: World = request.getfixturevalue(which)
    model, prefix, tokenizer = world.model()
    frame = world.predictor()(TEXTS)
    assert list(frame.columns) == ["label", *(f"probability.{label}" for label in LABELS)]
    for i, text in enumerate(TEXTS):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad(), attach(model, prefix):
            expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.softmax(-1)[0]
        got = frame.iloc[i, 1:].to_numpy(dtype=np.float64)
        assert np.abs(got - expected.double().numpy()).max() < 1e-6
        assert frame.label[i] == LABELS[int(expected.argmax())]


def test_the_prefix_and_the_head_matter_to_the_answer(classifier: World, tmp_path: Path) -> None:
    other = mlflow_world.adapter(
        classifier.base, "classification", classifier.root, tmp_path / "other", seed=1
    )
    theirs = Predictor(mlflow_world.record(other, "6" * 32, KEY, classifier.base), other, classifier.root)(
        TEXTS
    )
    assert np.abs(classifier.predictor()(TEXTS).iloc[:, 1:] - theirs.iloc[:, 1:]).to_numpy().max() > 1e-3


def test_answers_do_not_depend_on_the_order_or_the_company_of_texts(
    classifier: World, generator: World
) -> None:
    for world in (classifier, generator):
        predict = world.predictor()
        together, backwards = predict(TEXTS), predict(TEXTS[::-1]).iloc[::-1].reset_index(drop=True)
        for i, text in enumerate(TEXTS):
            alone = predict([text])
            assert alone.iloc[0, 0] == together.iloc[i, 0] == backwards.iloc[i, 0]
            rest = [frame.iloc[row, 1:].to_numpy(dtype=float) for frame, row in ((alone, 0), (together, i))]
            assert np.allclose(*rest, atol=1e-6)


def test_generated_texts_are_those_of_the_model_on_each_source_alone(generator: World) -> None:
    model, prefix, tokenizer = generator.model()
    got = list(generator.predictor()(TEXTS).text)
    for text, answer in zip(TEXTS, got, strict=True):
        ids = torch.tensor([tokenizer(f"{text}\n", add_special_tokens=False)["input_ids"]])
        new = generate(
            model,
            prefix,
            ids,
            torch.ones_like(ids),
            max_new_tokens=6,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        assert answer == tokenizer.decode(new[0], skip_special_tokens=True).strip()
    assert any(got)


def test_answers_of_an_encoder_decoder_are_transformers_own_on_each_source_alone(answerer: World) -> None:
    model, prefix, words = answerer.model()
    got = list(answerer.predictor()(TEXTS).text)
    own = model.generation_config
    settings = GenerationConfig(
        max_new_tokens=6,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        decoder_start_token_id=model.config.decoder_start_token_id,
        forced_bos_token_id=own.forced_bos_token_id,
    )
    model.generation_config = GenerationConfig()
    with attach(model, prefix), torch.no_grad():
        for text, answer in zip(TEXTS, got, strict=True):
            ids = torch.tensor([words(text).input_ids])
            new = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings
            )
            assert answer == words.decode(new[0], skip_special_tokens=True).strip()
    assert len(set(got)) > 1


def test_what_is_written_is_as_long_as_in_the_evaluation_whatever_may_be_read(
    answerer: World, generator: World
) -> None:
    texts = ["cat", "dog bird"]
    for world in (answerer, generator):
        params = {**world.record().params, "data": {"too_long": "error", "max_tokens": 5}}
        assert list(world.predictor(params=params)(texts).text) == list(world.predictor()(texts).text)


def test_a_source_without_tokens_is_refused(tmp_path: Path) -> None:
    def bare(folder: Path) -> Path:
        tiny.tiny_t5(folder)
        path = folder / "tokenizer.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "post_processor": None}))
        return folder

    with pytest.raises(PrefixError, match="row 1: the source '' has no tokens; expected a text"):
        World(tmp_path, "generation", bare).predictor()(["cat", ""])


@pytest.mark.parametrize("pooling", [None, "mean"])
def test_a_text_without_tokens_is_not_classified(tmp_path: Path, pooling: Any) -> None:
    def bare(folder: Path) -> Path:
        tiny.tiny_encoder(folder)
        path = folder / "tokenizer.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "post_processor": None}))
        return folder

    predict = World(tmp_path, "classification", bare, pooling=pooling).predictor()
    assert len(predict(["cat"])) == 1
    with pytest.raises(PrefixError, match="row 1: ' ' has no tokens; expected a text"):
        predict(["cat", " "])


def test_answers_of_an_encoder_decoder_do_not_depend_on_order_or_company(answerer: World) -> None:
    predict = answerer.predictor()
    together, backwards = list(predict(TEXTS).text), list(predict(TEXTS[::-1]).text)[::-1]
    assert together == backwards == [predict([text]).text[0] for text in TEXTS]


def test_a_source_longer_than_an_encoder_decoder_holds_is_refused_or_cut_where_params_say_so(
    answerer: World,
) -> None:
    _, _, words = answerer.model()
    specials = len(words("").input_ids)
    full, long = "cat " * (64 - specials), "cat " * 65
    assert answerer.predictor()([full]).text[
        0
    ]  # the prefix and the answer take nothing of the source's window
    with pytest.raises(
        PrefixError, match=rf"row 1: the source has {65 + specials} tokens; expected at most 64"
    ):
        answerer.predictor()([full, long])
    params = {**answerer.record().params, "data": {"too_long": "truncate", "max_tokens": 10}}
    cut = answerer.predictor(params=params)
    assert cut([long]).equals(cut(["cat " * (10 - specials)]))
    assert not cut([long]).equals(cut(["dog"]))


def test_nothing_asked_is_nothing_answered(classifier: World, generator: World) -> None:
    assert classifier.predictor()([]).empty
    assert generator.predictor()([]).empty


def test_a_text_longer_than_the_window_is_refused_by_row_or_cut_where_params_say_so(
    classifier: World,
) -> None:
    long = "cat " * 80
    with pytest.raises(PrefixError, match="row 1: the text has 82 tokens; expected at most 60"):
        classifier.predictor()(["cat", long])
    params = {**classifier.record().params, "data": {"too_long": "truncate", "max_tokens": 10}}
    cut = classifier.predictor(params=params)
    assert cut([long]).equals(cut(["cat " * 8]))


def test_a_source_that_leaves_no_room_is_refused_and_one_that_leaves_little_gets_little(
    generator: World,
) -> None:
    predict = generator.predictor()
    with pytest.raises(PrefixError, match="row 0: the source has"):
        predict(["cat " * 200])
    assert len(predict(["cat " * 120])) == 1


def test_what_is_not_a_text_is_refused(classifier: World) -> None:
    with pytest.raises(PrefixError, match="row 1: got int; expected a text"):
        classifier.predictor()(["cat", 5])  # type: ignore[list-item]


def test_a_tampered_adapter_is_not_loaded(classifier: World, tmp_path: Path) -> None:
    copy = tmp_path / "adapter"
    copy.mkdir()
    for path in classifier.adapter.iterdir():
        (copy / path.name).write_bytes(path.read_bytes() + b" ")
    with pytest.raises(IntegrityError, match="tampered"):
        Predictor(classifier.record(), copy, classifier.root)


def test_another_base_than_the_recorded_one_is_not_used(classifier: World, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError):
        Predictor(classifier.record(), classifier.adapter, tmp_path)
    tiny.tiny_encoder(tmp_path / "models" / "base", seed=1)
    with pytest.raises(IntegrityError):
        Predictor(classifier.record(), classifier.adapter, tmp_path)


LOAD = """
import json, sys, warnings
import mlflow.pyfunc, pandas
warnings.simplefilter("error", UserWarning)
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/reviews@candidate")
texts = json.loads(sys.argv[2])
by_list, by_table = model.predict(texts), model.predict(pandas.DataFrame({"any": texts, "more": 1}))
assert by_list.equals(by_table)
print(by_list.to_json(orient="records", double_precision=15))
"""


def test_mlflow_loads_and_predicts_in_a_process_that_knows_only_the_name(
    classifier: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = mlflow_world.database(classifier.root)
    run_id = start_run(registry, "reviews", KEY, params={})
    record = classifier.record(run_id)
    registration.register(
        registry,
        run_id=run_id,
        record=record,
        adapter=classifier.adapter,
        example=TEXTS[:1],
        actor=mlflow_world.ACTOR,
    )
    stored = Path(registry.client.get_model_version_download_uri("reviews", "1").removeprefix("file://"))
    assert not [path for path in stored.rglob("*") if path.suffix == ".pkl"]
    assert sum(path.stat().st_size for path in stored.rglob("*")) < 100_000  # the base is not in there
    monkeypatch.setenv("PREFIXLINE_WORKSPACE", str(classifier.root))
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    before = sorted(stored.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, registry.uri, json.dumps(TEXTS)],
        cwd=classifier.root.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    after = [
        path for path in sorted(stored.rglob("*")) if path.name != "registered_model_meta"
    ]  # MLflow's mark
    assert after == before
    answers = json.loads(done.stdout.strip().splitlines()[-1])
    expected = classifier.predictor()(TEXTS).to_dict("records")
    for answer, ours in zip(answers, expected, strict=True):
        assert answer["label"] == ours["label"]
        assert all(abs(answer[key] - ours[key]) < 1e-6 for key in ours if key != "label")
