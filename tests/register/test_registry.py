"""Runs in MLflow: started once per run key, completed by repeats, closed with an outcome. Real sqlite databases."""

from __future__ import annotations

import multiprocessing
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.base.base_model import ResolvedBase
from pipeline.errors import RegistryError, UnreachableError
from pipeline.register import registry as mlflow_registry
from pipeline.register.dataset_source import DvcDatasetSource
from pipeline.register.registry import Registry, find_run_key, start_run
from tests import mlflow_world

KEY = "1" * 64
OTHER = "2" * 64
PARAMS = {"training": {"learning_rate": 0.03, "seed": 7, "patience": None}, "task": "classification"}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return mlflow_world.database(tmp_path)


def runs(registry: Registry, view: int = 1) -> list[str]:
    experiment = registry.client.get_experiment_by_name("reviews")
    assert experiment is not None
    found = registry.client.search_runs([experiment.experiment_id], run_view_type=view)
    return [run.info.run_id for run in found]


def test_a_new_database_is_made_on_first_use_with_its_artifacts_where_told(tmp_path: Path) -> None:
    root = tmp_path / "ws" / ".prefixline"
    registry = mlflow_registry.connect(f"sqlite:///{root}/mlflow.db", artifact_root=(root / "files").as_uri())
    run_id = start_run(registry, "reviews", KEY, params=PARAMS)
    (tmp_path / "page.html").write_text("<p>")
    mlflow_registry.log_files(registry, run_id, [tmp_path / "page.html"])
    assert [path.name for path in (root / "files" / "reviews").rglob("*.html")] == ["page.html"]
    assert sorted(path.name for path in (tmp_path / "ws").iterdir()) == [".prefixline"]


def test_the_same_run_key_has_one_run_however_often_it_is_started(registry: Registry) -> None:
    first = start_run(registry, "reviews", KEY, params=PARAMS, tags={"prefixline.prefect": "p1"})
    again = start_run(registry, "reviews", KEY, params=PARAMS, tags={"prefixline.prefect": "p2"})
    assert again == first
    assert runs(registry, view=3) == [first]  # and none was made and deleted again
    run = registry.client.get_run(first)
    assert run.data.params == {
        "task": "classification",
        "training.learning_rate": "0.03",
        "training.seed": "7",
        "training.patience": "null",
    }
    assert run.data.tags["prefixline.prefect"] == "p2"
    assert start_run(registry, "reviews", OTHER, params=PARAMS) != first


def test_an_interrupted_run_is_resumed(registry: Registry) -> None:
    run_id = start_run(registry, "reviews", KEY, params=PARAMS)
    assert mlflow_registry.interrupt(registry, run_id, "x" * 9000)
    interrupted = registry.client.get_run(run_id)
    assert interrupted.info.status == "FAILED"
    assert interrupted.data.tags["prefixline.error"].endswith("(cut; the whole is in the artifacts)")
    assert find_run_key(registry, "reviews", KEY) is None
    assert start_run(registry, "reviews", KEY, params=PARAMS) == run_id
    assert registry.client.get_run(run_id).info.status == "RUNNING"


def test_a_run_key_is_known_only_once_it_has_an_outcome(registry: Registry) -> None:
    assert find_run_key(registry, "reviews", KEY) is None
    run_id = start_run(registry, "reviews", KEY, params=PARAMS)
    assert find_run_key(registry, "reviews", KEY) is None
    mlflow_registry.reject(registry, run_id, ["accuracy is 0.4", "expected 0.5"])
    assert find_run_key(registry, "reviews", KEY) == mlflow_registry.Known(run_id, "rejected", None)
    assert find_run_key(registry, "reviews", OTHER) is None
    assert find_run_key(registry, "elsewhere", KEY) is None
    run = registry.client.get_run(run_id)
    assert run.data.tags["prefixline.reasons"] == "accuracy is 0.4\nexpected 0.5"
    assert run.info.status == "FINISHED"
    assert registry.client.search_registered_models() == []


def test_a_run_with_an_outcome_is_found_before_a_younger_one_without(registry: Registry) -> None:
    run_id = start_run(registry, "reviews", KEY, params=PARAMS)
    mlflow_registry.reject(registry, run_id, ["too bad"])
    experiment = registry.client.get_run(run_id).info.experiment_id
    registry.client.create_run(experiment, start_time=1, tags={mlflow_registry.RUN_KEY: KEY})
    assert find_run_key(registry, "reviews", KEY) == mlflow_registry.Known(run_id, "rejected", None)
    assert start_run(registry, "reviews", KEY, params=PARAMS) == run_id


def _start(root: Path, barrier: object, results: object) -> None:
    registry = mlflow_world.database(root)
    assert registry.client
    barrier.wait()  # type: ignore[attr-defined]
    results.put(start_run(registry, "reviews", KEY, params=PARAMS))  # type: ignore[attr-defined]


def test_processes_that_start_a_run_key_at_once_leave_no_run_that_none_of_them_uses(
    tmp_path: Path,
) -> None:
    registry = mlflow_world.database(tmp_path)
    # Not forked: a thread of an earlier test may hold a lock, which then nobody in the new process would release.
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    workers = [context.Process(target=_start, args=(tmp_path, barrier, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    started = {results.get(timeout=120) for _ in workers}
    for worker in workers:
        worker.join()
    assert set(runs(registry)) <= started
    assert start_run(registry, "reviews", KEY, params=PARAMS) in started


def test_more_params_than_one_request_takes_and_values_too_long_are_all_kept(registry: Registry) -> None:
    many = {"labels": [f"label {i}" for i in range(1000)], "p": {f"k{i}": i for i in range(150)}, "empty": {}}
    run_id = start_run(registry, "reviews", KEY, params=many)
    params = registry.client.get_run(run_id).data.params
    assert len(params) == 152
    assert params["labels"].startswith("sha256:")
    assert params["empty"] == "{}"


def test_a_param_that_contradicts_the_logged_one_is_refused(registry: Registry) -> None:
    start_run(registry, "reviews", KEY, params={"seed": 1})
    with pytest.raises(RegistryError, match="logging params"):
        start_run(registry, "reviews", KEY, params={"seed": 2})


def test_final_metrics_are_logged_once_and_corrected_by_a_repeat(registry: Registry) -> None:
    run_id = start_run(registry, "reviews", KEY, params={})
    for value in (0.5, 0.5, 0.6):
        mlflow_registry.log_metrics(registry, run_id, {"test/accuracy": value, "test/loss": 1.0})
        time.sleep(0.002)
    assert registry.client.get_run(run_id).data.metrics == {"test/accuracy": 0.6, "test/loss": 1.0}
    assert len(registry.client.get_metric_history(run_id, "test/loss")) == 1


def test_files_and_folders_are_uploaded_and_replaced(registry: Registry, tmp_path: Path) -> None:
    run_id = start_run(registry, "reviews", KEY, params={})
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "loss.svg").write_text("<svg/>")
    (tmp_path / "card.json").write_text("{}")
    for _ in range(2):
        mlflow_registry.log_files(registry, run_id, [tmp_path / "plots", tmp_path / "card.json"], "report")
    found = {info.path for info in registry.client.list_artifacts(run_id, "report")}
    assert found == {"report/plots", "report/card.json"}


def test_an_artifact_that_cannot_be_written_is_an_error_that_says_so(
    registry: Registry, tmp_path: Path
) -> None:
    run_id = start_run(registry, "reviews", KEY, params={})
    with pytest.raises(RegistryError, match=r"uploading artifacts.*run it again"):
        mlflow_registry.log_files(registry, run_id, [tmp_path / "missing.json"])


def test_the_dataset_input_is_recorded_once_and_read_back_by_mlflow(registry: Registry) -> None:
    from mlflow.data import get_source

    run_id = start_run(registry, "reviews", KEY, params={})
    source = DvcDatasetSource("data/x.csv", "e" * 40, "d" * 32 + ".dir", "a" * 64, {"x.csv": "b" * 64})
    for _ in range(2):
        mlflow_registry.log_dataset_input(registry, run_id, "reviews", source, {"train": 8, "test": 2})
    (recorded,) = registry.client.get_run(run_id).inputs.dataset_inputs
    assert recorded.dataset.digest == source.md5
    assert '"num_rows": 10' in recorded.dataset.profile
    assert [tag.value for tag in recorded.tags] == ["training, validation, test"]
    assert get_source(recorded) == source


def test_the_base_model_is_one_input_shared_by_the_runs_of_a_prefix(
    registry: Registry, tmp_path: Path
) -> None:
    base = ResolvedBase("tiny", tmp_path, "b" * 64, {"config.json": "c" * 64}, {"path": "base"})
    other = ResolvedBase("tiny", tmp_path, "e" * 64, {"config.json": "c" * 64}, {"path": "base"})
    first, second = (start_run(registry, "reviews", key, params={}) for key in (KEY, OTHER))
    model = mlflow_registry.log_base_model(registry, first, base)
    assert mlflow_registry.log_base_model(registry, first, base) == model
    assert mlflow_registry.log_base_model(registry, second, base) == model
    (linked,) = registry.client.get_run(first).inputs.model_inputs
    assert linked.model_id == model
    recorded = registry.client.get_logged_model(model)
    assert recorded.tags[mlflow_registry.BASE_DIGEST] == "b" * 64
    assert recorded.status == "READY"
    assert mlflow_registry.log_base_model(registry, second, other) != model


def test_a_deleted_experiment_is_named_with_the_way_back(registry: Registry) -> None:
    run_id = start_run(registry, "reviews", KEY, params={})
    registry.client.delete_experiment(registry.client.get_run(run_id).info.experiment_id)
    with pytest.raises(RegistryError, match="mlflow experiments restore"):
        start_run(registry, "reviews", KEY, params={})


def test_an_experiment_made_by_another_process_meanwhile_is_used(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = registry.client.create_experiment("reviews")
    real = registry.client.get_experiment_by_name
    answers = iter([None])
    monkeypatch.setattr(registry.client, "get_experiment_by_name", lambda name: next(answers, real(name)))
    run_id = start_run(registry, "reviews", KEY, params={})
    assert registry.client.get_run(run_id).info.experiment_id == made


@pytest.mark.parametrize("name", ["", "a/../b"])
def test_an_experiment_mlflow_refuses_is_an_error_of_ours(registry: Registry, name: str) -> None:
    with pytest.raises(RegistryError, match="refused"):
        start_run(registry, name or " ", "1' or '", params={})


def test_a_server_that_is_not_there_is_reported_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(UnreachableError, match="prefixline up"):
        mlflow_registry.connect(f"http://127.0.0.1:{mlflow_world.free_port()}")
    assert time.monotonic() - began < 6


def test_a_server_that_dies_later_is_reported_in_bounded_time(registry: Registry) -> None:
    away = Registry(f"http://127.0.0.1:{mlflow_world.free_port()}")
    began = time.monotonic()
    with pytest.raises(UnreachableError, match="looking for run key"):
        find_run_key(away, "reviews", KEY)
    assert time.monotonic() - began < 20


def test_a_page_that_is_not_mlflow_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "health").write_text("hello")
    port = mlflow_world.free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(100):
                with pytest.raises(UnreachableError) as caught:
                    mlflow_registry.connect(f"http://127.0.0.1:{port}")
                if "expected 'OK'" in str(caught.value):
                    return
                time.sleep(0.1)
            pytest.fail(str(caught.value))
        finally:
            process.kill()


@pytest.mark.parametrize("uri", ["sqlite:///relative.db", "mlruns", "mysql://host/db"])
def test_an_address_that_cannot_be_used_is_named(uri: str) -> None:
    with pytest.raises(RegistryError, match="expected http://"):
        mlflow_registry.connect(uri, artifact_root="file:///x")


def test_a_database_without_a_place_for_artifacts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="artifact_root"):
        mlflow_registry.connect(f"sqlite:///{tmp_path}/mlflow.db")


def test_a_file_that_is_no_database_and_a_folder_that_cannot_be_made_are_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database")
    with pytest.raises(RegistryError, match=r"mlflow\.db: is not an SQLite database"):
        mlflow_registry.connect(f"sqlite:///{tmp_path}/mlflow.db", artifact_root="file:///x")
    (tmp_path / "mlflow.db").write_bytes(b"SQLite format 3\0" + b"and then something else" * 200)
    broken = mlflow_registry.connect(f"sqlite:///{tmp_path}/mlflow.db", artifact_root="file:///x")
    with pytest.raises(RegistryError, match=r"MLflow cannot use .*mlflow\.db"):
        find_run_key(broken, "reviews", KEY)
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryError, match="opening MLflow's database"):
        mlflow_registry.connect(f"sqlite:///{tmp_path}/file/mlflow.db", artifact_root="file:///x")


def test_a_database_that_fails_under_way_counts_as_unreachable(registry: Registry, tmp_path: Path) -> None:
    registry.client.search_experiments()
    with sqlite3.connect(tmp_path / ".prefixline" / "mlflow.db") as database:
        database.execute("DROP TABLE experiments")  # as quick as a lock, which MLflow waits 20 s for, is slow
    with pytest.raises(UnreachableError, match="cannot be used now"):
        find_run_key(registry, "reviews", KEY)


def test_importing_the_registry_imports_no_mlflow() -> None:
    code = "import sys, pipeline.register.registry, pipeline.register.versions, pipeline.register.curves; assert 'mlflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_run_tells_when_it_began_and_how_the_last_one_ended(registry: Registry) -> None:
    assert mlflow_registry.last_outcome(registry, "reviews") is None
    run_id = start_run(registry, "reviews", KEY, params={})
    began = mlflow_registry.started_at(registry, run_id)
    assert began.endswith("+00:00")
    assert mlflow_registry.last_outcome(registry, "reviews") is None
    mlflow_registry.reject(registry, run_id, ["no"])
    last = mlflow_registry.last_outcome(registry, "reviews")
    assert last is not None
    assert (last["outcome"], last["run"]) == ("rejected", run_id)
    assert last["ended"] >= began
    assert start_run(registry, "reviews", KEY, params={}) == run_id
    assert mlflow_registry.started_at(registry, run_id) == began


def test_a_json_artifact_is_read_back_and_a_missing_one_named(registry: Registry, tmp_path: Path) -> None:
    run_id = start_run(registry, "reviews", KEY, params={})
    (tmp_path / "outcome.json").write_text('{"é": 1}', encoding="utf-8")
    mlflow_registry.log_files(registry, run_id, [tmp_path / "outcome.json"])
    assert mlflow_registry.read_json(registry, run_id, "outcome.json") == {"é": 1}
    with pytest.raises(RegistryError, match=r"reading other\.json"):
        mlflow_registry.read_json(registry, run_id, "other.json")


def test_a_run_that_has_its_outcome_is_neither_started_nor_failed_again(registry: Registry) -> None:
    run_id = start_run(registry, "reviews", KEY, params=PARAMS, tags={"prefixline.prefect": "p1"})
    mlflow_registry.reject(registry, run_id, ["too bad"])
    assert start_run(registry, "reviews", KEY, params=PARAMS, tags={"prefixline.prefect": "p2"}) == run_id
    assert not mlflow_registry.interrupt(registry, run_id, "the disk was full")
    run = registry.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["prefixline.prefect"] == "p1"
    assert mlflow_registry.ERROR not in run.data.tags
