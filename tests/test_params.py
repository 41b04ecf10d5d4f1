"""params.yaml: what is accepted, and what every mistake says."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pydantic
import pytest

from pipeline.errors import ParamsError
from pipeline.params_file import load_params, parse_params

DIGEST = "a" * 64
GOOD: dict[str, Any] = {
    "defaults": {"training": {"epochs": 5}, "gate": {"floors": {"loss": 2.0}}},
    "base_models": {"small": {"source": {"path": "bases/small"}, "digest": DIGEST}},
    "prefixes": {
        "questions": {
            "base_model": "small",
            "task": "classification",
            "data": {"path": "data/questions.csv"},
            "training": {"learning_rate": 0.1},
        }
    },
}


def changed(path: str, value: Any) -> dict[str, Any]:
    raw = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    place: Any = raw
    for key in parents:
        place = place.setdefault(key, {})
    place[last] = value
    return raw


def problems(raw: Any) -> tuple[str, ...]:
    with pytest.raises(ParamsError) as caught:
        parse_params(raw)
    return caught.value.problems


def test_an_entry_overrides_the_defaults_key_by_key():
    entry = parse_params(GOOD).prefix("questions")
    assert (entry.training.epochs, entry.training.learning_rate) == (5, 0.1)
    assert entry.gate.floors == {"loss": 2.0}


def test_the_objects_cannot_be_changed():
    entry = parse_params(GOOD).prefix("questions")
    with pytest.raises(pydantic.ValidationError):
        entry.training.epochs = 1


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (
            "prefixes.questions.training.learning_rate",
            1e39,
            "prefixes.questions.training.learning_rate: got 1e+39; input should be less than or equal to 100",
        ),
        ("prefixes.questions.training.lr", 1, "prefixes.questions.training.lr: unknown key"),
        ("defaults.training.lr", 1, "defaults.training.lr: unknown key"),
        ("prefixs", {}, "prefixs: unknown key; expected one of base_models, defaults, keys, prefixes"),
        (
            "prefixes.questions.training.epochs",
            0,
            "prefixes.questions.training.epochs: got 0; input should be",
        ),
        (
            "defaults.training.epochs",
            "many",
            "defaults.training.epochs: got 'many'; input should be a valid int",
        ),
        (
            "prefixes.questions.task",
            "regression",
            "prefixes.questions.task: got 'regression'; input should be",
        ),
        ("base_models.small.digest", "abc", "base_models.small.digest: got 'abc'"),
        (
            "base_models.small.source",
            {"hub": "a/b"},
            "base_models.small.source: expected one of {hub, revision",
        ),
        (
            "prefixes.questions.base_model",
            "big",
            "prefixes.questions.base_model: 'big' is not under base_models",
        ),
        (
            "prefixes.questions.gate.floors",
            {"bleu": 1},
            "prefixes.questions.gate.floors.bleu: got 'bleu'; expected",
        ),
        (
            "prefixes.questions.data.splits",
            {"train": 0.9},
            "prefixes.questions.data.splits: train + validation",
        ),
        (
            "prefixes.questions.training.epochs",
            True,
            "prefixes.questions.training.epochs: got True; input should be",
        ),
        (
            "prefixes.questions.training.epochs",
            "3",
            "prefixes.questions.training.epochs: got '3'; input should be",
        ),
        (
            "prefixes.questions.gate.floors",
            {"accuracy": 80},
            "prefixes.questions.gate.floors.accuracy: got 80; accuracy is between 0 and 1",
        ),
        (
            "prefixes.questions.gate",
            {"slices": [{"column": "region", "floors": {"loss": -1.0}}]},
            "prefixes.questions.gate.slices.0.floors.loss: got -1; loss is between 0 and inf",
        ),
        (
            "prefixes.questions.base_model",
            ["small"],
            "prefixes.questions.base_model: got ['small']; input should be",
        ),
        (
            "prefixes.questions.data.labels",
            ["cat", "dog", "cat"],
            "prefixes.questions.data.labels: got ['cat', 'dog', 'cat']; expected each once",
        ),
        (
            "prefixes.questions.data.slices",
            ["region", "region"],
            "prefixes.questions.data.slices: got ['region', 'region']; expected each once",
        ),
        (
            "prefixes.questions.data.slices",
            "region",
            "prefixes.questions.data.slices: got 'region'; input should be a valid list",
        ),
        (
            "prefixes.questions.data.label",
            "text",
            "prefixes.questions.data.label: got 'text', as text; expected another",
        ),
        (
            "prefixes.questions.data.path",
            "data/../../x.csv",
            "prefixes.questions.data.path: got 'data/../../x.csv'; expected a file",
        ),
        (
            "prefixes.questions.data.path",
            ".prefixline/mlflow.db",
            "prefixes.questions.data.path: got '.prefixline/mlflow.db'; expected",
        ),
        (
            "prefixes.questions.training",
            None,
            "prefixes.questions.training: got None; input should be a mapping",
        ),
        (
            "prefixes.Questions",
            {"task": "generation"},
            "prefixes.Questions: is not a name; expected up to 63 lower-case",
        ),
        (
            "prefixes.questions.prefix",
            {"text": "a question", "text_from": "words"},
            "prefixes.questions.prefix.text_from: got 'words' beside a text; expected only one",
        ),
        (
            "prefixes.questions.prefix",
            {"initialisation": "adapter"},
            "prefixes.questions.prefix.adapter: missing; initialisation: adapter needs the folder",
        ),
        (
            "prefixes.questions.prefix",
            {"version": "questions"},
            "prefixes.questions.prefix.version: got 'questions'; string should match pattern",
        ),
        (
            "prefixes.questions",
            {
                "base_model": "small",
                "task": "generation",
                "data": {"path": "d.csv"},
                "prefix": {"text_from": "labels"},
                "gate": {"floors": {"loss": 1.0}},
            },
            "prefixes.questions.prefix.text_from: got 'labels'; generation has none",
        ),
        (
            "prefixes.questions",
            {
                "base_model": "small",
                "task": "generation",
                "data": {"path": "d.csv"},
                "training": {"head_pooling": "mean"},
                "gate": {"floors": {"loss": 1.0}},
            },
            "prefixes.questions.training.head_pooling: got 'mean'; generation has no classification head",
        ),
        ("prefixes.questions.schedule", {"cron": "daily"}, "prefixes.questions.schedule.cron: got 'daily'"),
        (
            "prefixes.questions.training.learning_rate",
            float("nan"),
            "prefixes.questions.training.learning_rate: got",
        ),
        (
            "prefixes.questions.gate.slices",
            [{"column": "region"}],
            "prefixes.questions.gate.slices.0.column: 'region' is not listed under data.slices",
        ),
    ],
)
def test_a_mistake_is_named_with_its_key_path(path: str, value: Any, said: str):
    assert any(line.startswith(said) for line in problems(changed(path, value))), problems(
        changed(path, value)
    )


def test_a_missing_key_is_reported_where_it_belongs():
    raw = copy.deepcopy(GOOD)
    del raw["prefixes"]["questions"]["data"]
    assert problems(raw) == ("prefixes.questions.data: missing",)


def test_a_data_path_in_defaults_alone_is_refused_since_dvc_yaml_reads_the_entry():
    raw = copy.deepcopy(GOOD)
    raw["defaults"]["data"] = raw["prefixes"]["questions"].pop("data")
    assert problems(raw) == (
        "prefixes.questions.data.path: is only under defaults; write it here, where dvc.yaml reads it",
    )


def test_all_mistakes_are_reported_at_once():
    raw = changed("prefixes.questions.training.lr", 1)
    raw["base_models"]["small"]["digest"] = "abc"
    raw["prefixes"]["other"] = {"task": "generation"}
    raw["extra"] = 1
    found = "\n".join(problems(raw))
    for path in (
        "extra: unknown key",
        "prefixes.questions.training.lr",
        "base_models.small.digest",
        "prefixes.other.data",
    ):
        assert path in found


@pytest.mark.parametrize("raw", [None, [], "text", {"prefixes": []}])
def test_something_other_than_a_mapping_is_refused(raw: Any):
    assert "expected a mapping" in problems(raw)[0]


def test_an_unknown_prefix_lists_those_there_are():
    with pytest.raises(ParamsError, match="available: questions"):
        parse_params(GOOD).prefix("answers")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [1", "is not valid YAML"),
        (
            b"defaults: {}\ndefaults: {}\n",
            r"params\.yaml:2: found duplicate key \"defaults\"; expected each once",
        ),
        (b"\xff\xfe\x00", "is not UTF-8"),
    ],
)
def test_a_file_that_is_not_yaml_is_refused(tmp_path: Path, content: bytes, said: str):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(ParamsError, match=f"(?s){said}"):
        load_params(path)


def test_a_missing_file_says_how_to_make_a_workspace(tmp_path: Path):
    with pytest.raises(ParamsError, match="prefixline init"):
        load_params(tmp_path / "params.yaml")


def test_a_number_in_exponent_form_is_a_number(tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text(
        "defaults: {training: {learning_rate: 1e-3}}\n"
        f"base_models: {{b: {{source: {{path: b}}, digest: {DIGEST}}}}}\n"
        "prefixes: {p: {base_model: b, task: generation, data: {path: d.jsonl}}}\n"
    )
    assert load_params(path).prefix("p").training.learning_rate == 0.001


KEYS = {"alice": "1" * 64, "bob": "2" * 64}


def with_rules(**rules: Any) -> dict[str, Any]:
    return {**changed("prefixes.questions.promotion.production", rules), "keys": KEYS}


def test_rules_name_people_by_their_keys_and_defaults_hold_for_every_prefix():
    raw = with_rules(approvals=1, approvers=["bob"])
    raw["defaults"]["promotion"] = {
        "production": {"signed_by": ["alice", "bob"]},
        "staging": {"smoke_test": True},
    }
    promotion = parse_params(raw).prefix("questions").promotion
    assert (promotion.production.signed_by, promotion.production.approvers) == (("alice", "bob"), ("bob",))
    assert (promotion.staging.smoke_test, promotion.production.smoke_test) == (True, False)
    nothing = parse_params(GOOD).prefix("questions").promotion.production
    assert (nothing.signed_by, nothing.approvals, nothing.fresh_evaluation) == ((), 0, False)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"signed_by": ["carol"]}, "signed_by: 'carol' is not under keys; available: alice, bob"),
        ({"approvers": ["dave"]}, "approvers: 'dave' is not under keys; available: alice, bob"),
        ({"signed_by": ["alice", "alice"]}, "signed_by: got ['alice', 'alice']; expected each once"),
        ({"signed_by": [["alice"]]}, "signed_by.0: got ['alice']; input should be a valid string"),
        (
            {"signed_by": ["alice"], "approvals": 2, "approvers": ["bob"]},
            "approvals: got 2; expected at most 1, the approvers",
        ),
        ({"approvals": 1, "approvers": ["bob"]}, "signed_by: is empty; approvals need it"),
        (
            {"signed_by": ["bob"], "approvals": 1, "approvers": ["bob"]},
            "approvals: got 1; nobody in signed_by has as many approvers besides himself",
        ),
        ({"approvals": -1}, "approvals: got -1; input should be"),
    ],
)
def test_rules_that_nobody_could_meet_are_named(rules: dict[str, Any], said: str):
    where = f"prefixes.questions.promotion.production.{said}"
    found = problems(with_rules(**rules))
    assert any(line.startswith(where) for line in found), found


def test_a_fresh_evaluation_needs_floors_to_reach():
    raw = with_rules(fresh_evaluation=True)
    del raw["defaults"]["gate"]
    assert problems(raw) == (
        "prefixes.questions.promotion.production.fresh_evaluation: has nothing to reach; expected gate.floors",
    )


def test_names_and_keys_are_checked_and_each_key_has_one_name():
    raw = {**GOOD, "keys": {"alice": "1" * 64, "al": "1" * 64, "no name": "2" * 64, "bob": "short"}}
    assert problems(raw) == (
        "keys.al: is the key of alice too; expected one for each",
        "keys.bob: got 'short'; string should match pattern '^[0-9a-f]{64}$'",
        "keys.no name: is not a name; expected up to 63 letters, digits, and - _ . @, a letter or digit first",
    )
    assert problems({**GOOD, "keys": ["alice"]}) == ("keys: got list; expected a mapping",)


def test_a_wrong_name_in_the_defaults_is_named_there():
    raw = changed("defaults.promotion.staging.signed_by", ["carol"])
    assert problems(raw) == (
        "defaults.promotion.staging.signed_by: 'carol' is not under keys; available: none",
    )
