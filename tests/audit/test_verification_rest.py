"""The files of a version and its run where only a server has them: fetched, then hashed like any others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.audit.faults import Fault
from pipeline.audit.hashing import Hashes
from pipeline.audit.registered import RegisteredName
from pipeline.digest import canonical_json, digest
from pipeline.promotion import UNRULED
from pipeline.register import lineage, registration
from pipeline.register import registry as mlflow_registry
from pipeline.register.registry import Registry, log_files, start_run
from tests import mlflow_world


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Registry, Path]]:
    """A server that keeps artifacts itself, with one version; and the folder it keeps them in."""
    root = tmp_path_factory.mktemp("served")
    adapter = root / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    with mlflow_world.server(root, mlflow_world.free_port()) as uri:
        registry = mlflow_registry.connect(uri)
        files = {"config.json": "c" * 64}
        base = {"name": "tiny", "digest": digest(files), "source": {"path": "base"}, "files": files}
        key = mlflow_world.record(adapter, "0" * 32, "1" * 64, base).made_run_key()
        run_id = start_run(registry, "reviews", key, params={})
        record = mlflow_world.record(adapter, run_id, key, base)
        (root / "lineage.json").write_bytes(record.to_json())
        (root / "lock.json").write_bytes(canonical_json(lineage.installed()))
        log_files(registry, run_id, [root / "lineage.json", root / "lock.json"])
        registration.register(
            registry, run_id=run_id, record=record, adapter=adapter, example=["a"], actor=mlflow_world.ACTOR
        )
        yield registry, root / "artifacts"


def check(registry: Registry) -> list[Fault]:
    name = RegisteredName(registry, "reviews", UNRULED)
    with Hashes() as hashes:
        return name.check(name.versions[0], hashes).faults


def test_a_version_whose_files_are_fetched_is_sound(served: tuple[Registry, Path]) -> None:
    assert served[0].client.get_model_version("reviews", "1").source.startswith("mlflow-artifacts:")
    assert check(served[0]) == []


@pytest.mark.parametrize(
    ("name", "link", "where"),
    [
        ("adapter_model.safetensors", "adapter", "artifacts/adapter/adapter_model.safetensors"),
        ("MLmodel", "artefact", "MLmodel"),
        ("lock.json", "run", "lock.json of the run"),
    ],
)
def test_a_byte_changed_on_the_server_is_found(
    served: tuple[Registry, Path], name: str, link: str, where: str
) -> None:
    registry, artifacts = served
    (path,) = artifacts.rglob(name)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        assert ("tampered", link, where) in {(f.kind, f.link, f.where) for f in check(registry)}
    finally:
        path.write_bytes(content)
