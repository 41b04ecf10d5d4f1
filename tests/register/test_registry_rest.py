"""The same over REST: a real `mlflow server` on loopback, which keeps the artifacts, and one that fails."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.digest import manifest
from pipeline.register import registration, versions
from pipeline.register import registry as mlflow_registry
from pipeline.register.curves import LiveCurves, log_curves, read_curves
from pipeline.register.dataset_source import DvcDatasetSource
from pipeline.register.registry import Registry, find_run_key, start_run
from tests import mlflow_world

KEY = "1" * 64
EXAMPLE = ["the red cat runs"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("server")
    with mlflow_world.server(root, mlflow_world.free_port()) as uri:
        yield uri


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


def test_a_retraining_is_registered_and_read_back_through_the_server(
    server: str, adapter: Path, tmp_path: Path
) -> None:
    from mlflow.data import get_source

    registry = mlflow_registry.connect(server + "/")
    assert find_run_key(registry, "reviews", KEY) is None
    run_id = start_run(registry, "reviews", KEY, params={"training": {"seed": 1}})
    assert start_run(registry, "reviews", KEY, params={"training": {"seed": 1}}) == run_id
    source = DvcDatasetSource("data/x.csv", "e" * 40, "d" * 32, "a" * 64, {"x.csv": "b" * 64})
    mlflow_registry.log_dataset_input(registry, run_id, "reviews", source, {"train": 8})
    mlflow_registry.log_metrics(registry, run_id, {"test/accuracy": 0.9})
    (tmp_path / "page.html").write_text("<p>")
    mlflow_registry.log_files(registry, run_id, [tmp_path / "page.html"])
    record = mlflow_world.record(adapter, run_id, KEY)
    version = registration.register(
        registry, run_id=run_id, record=record, adapter=adapter, example=EXAMPLE, actor=mlflow_world.ACTOR
    )
    assert (
        registration.register(
            registry, run_id=run_id, record=record, adapter=adapter, example=EXAMPLE, actor=mlflow_world.ACTOR
        )
        == version
    )
    assert versions.lookup(registry, "reviews", "@candidate").record == record
    assert versions.list_versions(registry, "reviews") == (version,)
    mlflow_world.promote(registry, "reviews", version.version)
    champion = versions.production(registry, "reviews")
    assert champion is not None
    fetched = versions.fetch(registry, champion, tmp_path / "adapters")
    assert manifest(fetched.folder) == manifest(adapter)
    run = registry.client.get_run(run_id)
    assert get_source(run.inputs.dataset_inputs[0]) == source
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    assert [item.path for item in registry.client.list_artifacts(run_id)] == ["page.html"]
    assert find_run_key(registry, "reviews", KEY) == mlflow_registry.Known(run_id, "registered", "1")


def test_a_version_that_is_not_there_is_named_over_rest_too(server: str) -> None:
    registry = mlflow_registry.connect(server)
    with pytest.raises(mlflow_registry.RegistryError, match="available: none"):
        versions.lookup(registry, "nobody", "candidate")


def test_replies_lost_after_the_server_acted_leave_one_run_and_one_version_that_counts(
    server: str, adapter: Path
) -> None:
    name = "lossy"
    endings = {
        "/experiments/create",
        "/runs/create",
        "/registered-models/create",
        "/model-versions/create",
        "/runs/log-batch",
        "/logged-models",
    }
    with mlflow_world.losing_replies(server, endings) as (uri, lost):
        registry = mlflow_registry.connect(uri)
        run_id = start_run(registry, name, KEY, params={"seed": 1})
        sent = log_curves(registry, run_id, [{"kind": "step", "step": 1, "loss": 2.0, "seconds": 0.1}])
        record = mlflow_world.record(adapter, run_id, KEY, prefix=name)
        version = registration.register(
            registry, run_id=run_id, record=record, adapter=adapter, example=EXAMPLE, actor=mlflow_world.ACTOR
        )
    assert set(lost) == endings
    direct = mlflow_registry.connect(server)
    experiment = direct.client.get_experiment_by_name(name).experiment_id
    assert [run.info.run_id for run in direct.client.search_runs([experiment])] == [run_id]
    assert len(direct.client.search_runs([experiment], run_view_type=2)) == 1  # the deleted twin
    assert sent == 1
    assert len(direct.client.get_metric_history(run_id, "train/loss")) == 1
    assert version.version == "1"
    made = versions.list_versions(direct, name)
    assert [(v.version, v.duplicate_of, v.stages) for v in made] == [
        ("1", None, ("candidate",)),
        ("2", "1", ()),
    ]


def test_a_workspace_serves_alike_with_and_without_a_server(tmp_path: Path, adapter: Path) -> None:
    direct = mlflow_world.database(tmp_path)
    state = tmp_path / ".prefixline"
    first = _register(direct, adapter, KEY)
    with mlflow_world.server(
        state, mlflow_world.free_port(), "--default-artifact-root", direct.artifact_root or ""
    ) as uri:
        served = mlflow_registry.connect(uri, artifact_root=direct.artifact_root)
        assert versions.lookup(served, "reviews", "candidate").version == first
        second = _register(served, adapter, "2" * 64)
        other = _register(served, adapter, KEY, "others")
    assert (second.version, second.stages, other.version) == ("2", ("candidate",), "1")
    for name, version in (("reviews", second), ("others", other)):
        assert versions.lookup(direct, name, "candidate").version == version
        assert (state / "mlartifacts" / name / "models").is_dir()


def _register(
    registry: Registry, adapter: Path, key: str, name: str = "reviews"
) -> versions.RegisteredVersion:
    run_id = start_run(registry, name, key, params={})
    record = mlflow_world.record(adapter, run_id, key, prefix=name)
    return registration.register(
        registry, run_id=run_id, record=record, adapter=adapter, example=EXAMPLE, actor=mlflow_world.ACTOR
    )


def test_an_outage_during_training_is_caught_up_with_when_the_server_is_back(tmp_path: Path) -> None:
    port = mlflow_world.free_port()
    path = tmp_path / "curves.jsonl"

    def append(first: int, last: int) -> None:
        with path.open("a") as file:
            for step in range(first, last + 1):
                file.write(
                    json.dumps({"kind": "step", "step": step, "loss": 1 / step, "seconds": step}) + "\n"
                )

    def steps(registry: Registry) -> list[int]:
        return [metric.step for metric in registry.client.get_metric_history(run_id, "train/loss")]

    def wait(condition: object) -> None:
        end = time.monotonic() + 60
        while not condition():  # type: ignore[operator]
            assert time.monotonic() < end
            time.sleep(0.1)

    with mlflow_world.server(tmp_path / "server", port) as uri:
        registry = mlflow_registry.connect(uri)
        run_id = start_run(registry, "reviews", KEY, params={})
        live = LiveCurves(registry, run_id, path, every=0.1)
        live.__enter__()
        append(1, 3)
        wait(lambda: steps(registry) == [1, 2, 3])
    append(4, 6)
    wait(lambda: live.trouble is not None)
    with mlflow_world.server(tmp_path / "server", port):
        wait(lambda: live.trouble is None)
        append(7, 8)
        live.__exit__(None, None, None)
        assert steps(registry) == list(range(1, 9))
        assert log_curves(registry, run_id, read_curves(path)) == 0
