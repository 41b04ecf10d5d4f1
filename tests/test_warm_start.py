"""What a training goes on from is pinned by content, or refused before anything is done. Real MLflow databases."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import pytest

from pipeline import warm_start
from pipeline.base import base_model
from pipeline.base.base_model import ResolvedBase
from pipeline.digest import digest, manifest
from pipeline.errors import AdapterError, IntegrityError, PrefixError, RegistryError
from pipeline.ledger import tainting
from pipeline.params import BaseModelParams, PrefixEntry
from pipeline.params_file import parse_params
from pipeline.pins import WarmStart
from pipeline.register import registration
from pipeline.register import registry as mlflow_registry
from pipeline.register.registry import Registry
from tests import mlflow_world

SPLITS = {"train": 0.8, "validation": 0.1, "test": 0.1, "salt": ""}
OWN = {"initialisation": "version"}


@pytest.fixture(scope="module")
def base_record(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return mlflow_world.base_record(encoder_folder, tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def trained(base_record: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with a prefix of 4."""
    root = tmp_path_factory.getbasetemp()
    return mlflow_world.adapter(
        base_record, "classification", root, tmp_path_factory.mktemp("trained") / "adapter"
    )


class World:
    """A workspace's registry, a base, and the adapter of the versions that are registered."""

    def __init__(self, root: Path, base: dict[str, Any], base_root: Path, adapter: Path) -> None:
        self.root, self.base_record, self.adapter = root, base, adapter
        self.registry: Registry = mlflow_world.database(root)
        params = BaseModelParams(source=base["source"], digest=base["digest"])
        self.base: ResolvedBase = base_model.resolve("tiny", params, base_root)

    def register(
        self,
        run_key: str = "1" * 64,
        *,
        stage: Literal["staging", "production"] | None = None,
        **params: Any,
    ) -> str:
        """A version of `reviews` with this adapter."""
        recorded = {
            "task": "classification",
            "prefix": {"length": 4},
            "data": {"splits": SPLITS},
            **params,
        }
        run_id = mlflow_registry.start_run(self.registry, "reviews", run_key, params={})
        record = mlflow_world.record(self.adapter, run_id, run_key, self.base_record, params=recorded)
        made = registration.register(
            self.registry,
            run_id=run_id,
            record=record,
            adapter=self.adapter,
            example=["one"],
            actor=mlflow_world.ACTOR,
        )
        if stage is not None:
            mlflow_world.promote(self.registry, "reviews", made.version, to=stage)
        return made.version

    def resolve(self, prefix: dict[str, Any], name: str = "reviews", **entry: Any) -> WarmStart | None:
        return warm_start.resolve(self.registry, self.root, name, self.entry(prefix, **entry), self.base)

    def entry(self, prefix: dict[str, Any], **entry: Any) -> PrefixEntry:
        raw = {
            "base_model": "tiny",
            "task": "classification",
            "data": {"path": "data/reviews.jsonl"},
            "prefix": {"length": 4, **prefix},
            **entry,
        }
        source = {"source": {"path": "base"}, "digest": self.base.digest}
        params = {"base_models": {"tiny": source}, "prefixes": {"reviews": raw}}
        return parse_params(params).prefix("reviews")


@pytest.fixture
def world(
    tmp_path: Path, base_record: dict[str, Any], trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> World:
    return World(tmp_path, base_record, tmp_path_factory.getbasetemp(), trained)


def test_without_a_version_in_production_a_training_begins_anew(world: World) -> None:
    assert world.resolve(OWN) is None
    world.register()  # a candidate only
    assert world.resolve(OWN) is None
    assert world.resolve({"initialisation": "text"}) is None
    assert world.resolve({"initialisation": "random"}) is None


def test_the_version_in_production_is_pinned_by_its_number_and_content(world: World) -> None:
    world.register(stage="production")
    found = world.resolve(OWN)
    pinned = digest(manifest(world.adapter))
    assert found == WarmStart(pinned, {"prefix": "reviews", "version": "1"})
    folder = warm_start.fetch(world.registry, world.root, found)
    assert manifest(folder) == manifest(world.adapter)
    # what is promoted afterwards changes nothing for what has been pinned
    world.register("2" * 64, stage="production")
    assert warm_start.fetch(world.registry, world.root, found) == folder


@pytest.mark.parametrize("which", ["reviews:1", "reviews@staging"])
def test_another_prefixs_version_can_be_named_by_number_or_stage(world: World, which: str) -> None:
    world.register(stage="staging")
    found = world.resolve({**OWN, "version": which}, name="letters")
    assert found is not None
    assert found.source == {"prefix": "reviews", "version": "1"}


@pytest.mark.parametrize("which", ["reviews:9", "reviews@production", "nobody:1"])
def test_a_named_version_that_is_not_there_is_an_error(world: World, which: str) -> None:
    world.register()
    with pytest.raises(RegistryError, match="no version"):
        world.resolve({**OWN, "version": which})


@pytest.mark.parametrize(
    ("recorded", "asked", "said"),
    [
        ({}, {"prefix": {"length": 6}}, r"has 4 positions, and prefix\.length is 6"),
        ({}, {"prefix": {"length": 3}}, r"has 4 positions, and prefix\.length is 3"),
        ({"task": "generation"}, {}, "is for generation; expected classification"),
        (
            {},
            {"data": {"path": "data/reviews.jsonl", "splits": {**SPLITS, "salt": "new"}}},
            "rows it was trained on could be test rows now",
        ),
    ],
)
def test_a_version_that_does_not_fit_is_refused(
    world: World, recorded: dict[str, Any], asked: dict[str, Any], said: str
) -> None:
    world.register(stage="production", **recorded)
    prefix = {**OWN, **asked.pop("prefix", {})}
    with pytest.raises(PrefixError, match=f"cannot go on from version 1 of reviews: .*{said}.*: text"):
        world.resolve(prefix, **asked)


def test_a_version_of_another_base_is_refused(world: World) -> None:
    world.base_record = {**world.base_record, "digest": "0" * 64}
    world.register(stage="production")
    with pytest.raises(
        PrefixError, match=f"trained on the base model {'0' * 64}; tiny is {world.base.digest}"
    ):
        world.resolve(OWN)


def test_a_folder_is_pinned_by_its_two_files_and_copied(world: World) -> None:
    folder = world.root / "old"
    shutil.copytree(world.adapter, folder)
    (folder / "README.md").write_text("written by PEFT")
    found = world.resolve({"initialisation": "adapter", "adapter": "old"})
    assert found == WarmStart(digest(manifest(world.adapter)), {"adapter": "old"})
    kept = warm_start.fetch(world.registry, world.root, found)
    assert manifest(kept) == manifest(world.adapter)
    shutil.rmtree(folder)
    assert warm_start.fetch(world.registry, world.root, found) == kept  # pinned by content, not by place
    (kept / "adapter_config.json").write_text("{}")
    with pytest.raises(IntegrityError, match="delete it and run the retraining again"):
        warm_start.fetch(world.registry, world.root, found)


def test_a_folder_that_changes_after_it_was_pinned_is_refused_and_not_kept(world: World) -> None:
    folder = world.root / "old"
    shutil.copytree(world.adapter, folder)
    found = world.resolve({"initialisation": "adapter", "adapter": "old"})
    assert found is not None
    config = folder / "adapter_config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(IntegrityError, match="has changed since the retraining began"):
        warm_start.fetch(world.registry, world.root, found)
    assert list((world.root / ".prefixline" / "adapters").iterdir()) == []


def test_a_folder_without_an_adapter_or_for_another_length_is_refused(world: World) -> None:
    with pytest.raises(AdapterError, match=r"adapter_config\.json: no such file"):
        world.resolve({"initialisation": "adapter", "adapter": "nowhere"})
    shutil.copytree(world.adapter, world.root / "old")
    with pytest.raises(
        PrefixError, match=r"the adapter in .*old: it has 4 positions, and prefix\.length is 5"
    ):
        world.resolve({"initialisation": "adapter", "adapter": "old", "length": 5})


def taint(world: World) -> None:
    tainting.taint(world.registry, "reviews", "1", row="e" * 64, actor="a", reason="asked for")


@pytest.mark.parametrize("which", [None, "reviews@production", "reviews:1"])
def test_a_training_does_not_go_on_from_a_tainted_version_and_says_so(
    world: World, which: str | None
) -> None:
    world.register(stage="production")
    taint(world)
    said: list[str] = []
    entry = world.entry({**OWN, "version": which})
    found = warm_start.resolve(world.registry, world.root, "letters", entry, world.base, said.append)
    if which is None:  # the prefix's own production, which is empty
        found = warm_start.resolve(world.registry, world.root, "reviews", entry, world.base, said.append)
    assert found is None
    (line,) = said
    assert "version 1 of reviews saw a row that was to be erased; the training does not go on from it" in line


def test_a_folder_with_a_tainted_versions_adapter_is_refused(world: World) -> None:
    world.register()
    shutil.copytree(world.adapter, world.root / "old")
    folder = {"initialisation": "adapter", "adapter": "old"}
    assert world.resolve(folder) is not None
    taint(world)
    with pytest.raises(PrefixError, match="old is the adapter of version 1 of reviews, which saw a row"):
        world.resolve(folder)


def test_a_folder_that_is_gone_is_taken_from_what_was_kept_or_named(world: World) -> None:
    shutil.copytree(world.adapter, world.root / "old")
    found = world.resolve({"initialisation": "adapter", "adapter": "old"})
    assert found is not None
    shutil.rmtree(world.root / "old")
    with pytest.raises(PrefixError, match=r"adapter_config\.json: no such file.*Bring it back"):
        warm_start.fetch(world.registry, world.root, found)
    shutil.copytree(world.adapter, world.root / ".prefixline/adapters" / found.adapter_digest)
    elsewhere = warm_start.fetch(world.registry, world.root, found, world.root / "elsewhere")
    assert manifest(elsewhere) == manifest(world.adapter)
