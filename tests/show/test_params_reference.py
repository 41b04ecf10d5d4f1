"""`prefixline params` says what params.yaml takes, as the types that validate it have it."""

from __future__ import annotations

import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML

from pipeline.params import (
    EvaluationParams,
    GateParams,
    PrefixEntry,
    PrefixParams,
    SplitParams,
    TrainingParams,
)
from pipeline.show.params_reference import params_reference


def block(place: str) -> str:
    (found,) = [part for part in params_reference().split("\n\n") if part.startswith(f"# {place}\n")]
    return found


@pytest.mark.parametrize(
    ("place", "section"),
    [
        ("prefixes.NAME.data.splits", SplitParams),
        ("prefixes.NAME.prefix", PrefixParams),
        ("prefixes.NAME.training", TrainingParams),
        ("prefixes.NAME.evaluation", EvaluationParams),
        ("prefixes.NAME.gate", GateParams),
    ],
)
def test_a_section_is_yaml_that_says_the_defaults(place: str, section: type[BaseModel]) -> None:
    said = YAML(typ="safe").load(block(place))
    assert list(said) == list(section.model_fields)
    assert section.model_validate(said) == section()


def test_every_key_says_what_it_takes_and_whether_it_must_be_there() -> None:
    training, entry = block("prefixes.NAME.training"), block("prefixes.NAME")
    assert "max_steps: null                      # integer ≥ 1 or null" in training
    assert "head_pooling: null                   # mean or null" in training
    assert 'schedule: "linear"                   # constant or linear or cosine' in training
    assert "data:                                # required; mapping, see below" in entry
    assert set(YAML(typ="safe").load(entry)) == set(PrefixEntry.model_fields)
