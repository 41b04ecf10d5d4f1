"""The record's laws, and what the run key does and does not depend on."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.digest import canonical_json, digest
from pipeline.errors import IntegrityError
from pipeline.params import Params, PrefixEntry
from pipeline.params_file import parse_params
from pipeline.register import lineage
from pipeline.register.lineage import (
    LineageRecord,
    code_identity,
    environment_identity,
    identity_params,
    run_key,
)
from tests import records

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(metrics=st.dictionaries(st.text(), json_values, max_size=4), seed=st.integers(0, 2**32 - 1))
def test_a_record_survives_the_round_trip_through_json(metrics: dict[str, Any], seed: int) -> None:
    record = records.lineage(metrics=metrics, seed=seed)
    again = LineageRecord.from_json(record.to_json())
    assert again == record
    assert again.to_json() == record.to_json()
    assert again.digest == record.digest


def test_the_digest_is_the_sha256_of_the_json() -> None:
    import hashlib

    record = records.lineage()
    assert record.digest == hashlib.sha256(record.to_json()).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 8},
        {"created": "2024-03-01T12:00:00+00:00"},
        {"metrics": {"prefix": {"accuracy": 0.91}}},
        {"files": {"adapter_model.safetensors": "0" * 64}},
        {"runs": {"mlflow": "5" * 32, "prefect": None}},
    ],
)
def test_any_other_content_has_another_digest(change: dict[str, Any]) -> None:
    assert records.lineage(**change).digest != records.lineage().digest


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda raw: b"{not json", "is not JSON"),
        (lambda raw: b"[1]", "format version is 'list'"),
        (lambda raw: canonical_json({**raw, "format_version": 99}), "format version is 99"),
        (lambda raw: canonical_json({k: v for k, v in raw.items() if k != "seed"}), "'seed' is missing"),
        (lambda raw: canonical_json({**raw, "extra": 1}), "'extra' is unknown"),
        (lambda raw: json.dumps(raw, indent=1).encode(), "not canonical"),
        (lambda raw: canonical_json({**raw, "adapter_digest": "0" * 64}), "is not the digest of files"),
        (lambda raw: canonical_json({**raw, "dataset": {"md5": "x"}}), "dataset.git_commit: missing"),
        (lambda raw: canonical_json({**raw, "runs": None}), "runs: got NoneType; expected a mapping"),
    ],
)
def test_a_spoilt_record_is_refused(spoil: Callable[[dict[str, Any]], bytes], message: str) -> None:
    raw = json.loads(records.lineage().to_json())
    with pytest.raises(IntegrityError, match=message):
        LineageRecord.from_json(spoil(raw))


def test_a_record_of_a_dirty_tree_cannot_be_made() -> None:
    code = {"commit": "9" * 40, "version": "0.1.0", "digest": "8" * 64, "dirty": True}
    with pytest.raises(IntegrityError, match="commit them first"):
        records.lineage(code=code)


def _params(**overrides: Any) -> Params:
    entry: dict[str, Any] = {
        "base_model": "tiny",
        "task": "classification",
        "data": {"path": "data/reviews.jsonl"},
        **overrides,
    }
    source = {"source": {"path": "base"}, "digest": "b" * 64}
    return parse_params({"base_models": {"tiny": source, "twin": source}, "prefixes": {"reviews": entry}})


def _entry(**overrides: Any) -> PrefixEntry:
    return _params(**overrides).prefix("reviews")


def _key(entry: PrefixEntry, **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "dataset_md5": "d" * 32,
        "manifest": {"reviews.jsonl": "f" * 64},
        "base_digest": "b" * 64,
        "params": identity_params(entry),
        "code_digest": "8" * 64,
        "warm_start": None,
        **changes,
    }
    return run_key(**arguments)


@pytest.mark.parametrize(
    "same",
    [
        {"schedule": {"cron": "0 3 * * *"}},
        {"promotion": {"staging": {"smoke_test": True}}},
        {"training": {"checkpoint_seconds": 5}},
        {"training": {"processes": 2}},
        {"data": {"path": "data/moved.jsonl"}},
        {"data": {"path": "data/reviews.jsonl", "imported_from": "elsewhere.jsonl"}},
        {"base_model": "twin"},
        {"training": {"epochs": 3}},  # the default, written out
        {"prefix": {"version": "others:2"}},
        {"prefix": {"adapter": "folder"}},
    ],
)
def test_what_decides_nothing_leaves_the_run_key_as_it_was(same: dict[str, Any]) -> None:
    assert _key(_entry(**same)) == _key(_entry())


@pytest.mark.parametrize(
    "other",
    [
        {"task": "generation"},
        {"prefix": {"length": 17}},
        {"prefix": {"initialisation": "version"}},
        {"prefix": {"text_from": "words"}},
        {"training": {"seed": 1}},
        {"training": {"threads": 1}},
        {"evaluation": {"calibration_bins": 5}},
        {"gate": {"floors": {"accuracy": 0.5}}},
        {"data": {"path": "data/reviews.jsonl", "splits": {"salt": "x"}}},
        {"data": {"path": "data/reviews.jsonl", "text": "body"}},
    ],
)
def test_every_parameter_that_decides_gives_another_run_key(other: dict[str, Any]) -> None:
    assert _key(_entry(**other)) != _key(_entry())


@pytest.mark.parametrize(
    "other",
    [
        {"dataset_md5": "0" * 32},
        {"manifest": {"reviews.jsonl": "0" * 64}},
        {"base_digest": "0" * 64},
        {"code_digest": "0" * 64},
        {"warm_start": "0" * 64},
    ],
)
def test_other_data_base_or_code_gives_another_run_key(other: dict[str, Any]) -> None:
    assert _key(_entry(), **other) != _key(_entry())


@pytest.fixture
def copied_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """`pipeline` and `flows` as find_spec would find them in an installation elsewhere."""
    real = importlib.util.find_spec
    for name in ("pipeline", "flows"):
        spec = real(name)
        assert spec is not None
        assert spec.submodule_search_locations
        shutil.copytree(next(iter(spec.submodule_search_locations)), tmp_path / name)
    kept = {name: sys.modules.pop(name) for name in ("pipeline", "flows") if name in sys.modules}
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.update(kept)


def test_the_code_digest_follows_sources_and_templates_and_nothing_else(copied_packages: Path) -> None:
    before = lineage.code_identity()
    assert before["version"] == "0.1.0"
    (copied_packages / "pipeline" / "__pycache__").mkdir(exist_ok=True)
    (copied_packages / "pipeline" / "__pycache__" / "x.py").write_text("x")
    (copied_packages / "pipeline" / "notes.txt").write_text("x")
    assert lineage.code_identity() == before
    (copied_packages / "flows" / "more.py").write_text("x = 1\n")
    with_module = lineage.code_identity()
    assert with_module["digest"] != before["digest"]
    (copied_packages / "pipeline" / "templates").mkdir(exist_ok=True)
    (copied_packages / "pipeline" / "templates" / "page.html").write_text("<p>")
    assert lineage.code_identity()["digest"] != with_module["digest"]


def test_a_missing_package_is_an_error_not_a_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(IntegrityError, match="install prefixline again"):
        code_identity()


def test_the_code_identity_is_the_same_twice() -> None:
    assert code_identity() == code_identity()
    assert len(code_identity()["digest"]) == 64


def test_the_environment_names_the_libraries_and_no_path() -> None:
    environment = environment_identity()
    assert environment["libraries"].keys() == set(lineage.LIBRARIES)
    assert digest(environment) == digest(environment_identity())
    assert "/" not in json.dumps(environment)
