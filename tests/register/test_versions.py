"""One version per run key, whatever happens on the way; nothing unverified comes out. Real sqlite databases."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.digest import digest, manifest
from pipeline.errors import IntegrityError, RegistryError
from pipeline.register import registration, versions
from pipeline.register import registry as mlflow_registry
from pipeline.register.registry import Registry, find_run_key, start_run
from tests import mlflow_world

KEY = "1" * 64
EXAMPLE = ["the red cat runs"]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return mlflow_world.database(tmp_path)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


def register(
    registry: Registry, adapter: Path, run_key: str = KEY, **changes: Any
) -> versions.RegisteredVersion:
    run_id = start_run(registry, "reviews", run_key, params={})
    record = mlflow_world.record(adapter, run_id, run_key, **changes)
    return registration.register(
        registry, run_id=run_id, record=record, adapter=adapter, example=EXAMPLE, actor=mlflow_world.ACTOR
    )


def candidate(registry: Registry) -> str:
    return str(registry.client.get_model_version_by_alias("reviews", "candidate").version)


def test_a_passing_verdict_becomes_one_version_with_its_digests_and_the_candidate_alias(
    registry: Registry, adapter: Path
) -> None:
    version = register(registry, adapter)
    verified = versions.lookup(registry, "reviews", "candidate")
    assert verified.version == version
    assert (version.version, version.stages, version.run_key) == ("1", ("candidate",), KEY)
    assert version.tags[versions.LINEAGE_DIGEST] == verified.record.digest
    assert (
        version.tags[versions.ADAPTER_DIGEST] == digest(manifest(adapter)) == verified.record.adapter_digest
    )
    assert version.tags[versions.DATASET_MD5] == verified.record.dataset["md5"]
    assert version.tags[versions.BASE_DIGEST] == verified.record.base_model["digest"]
    assert json.loads(version.tags[versions.MADE_FROM]) == {
        "dataset_md5": "d" * 32, "base_digest": "b" * 64, "code_commit": "9" * 40,
        "row_index": None, "warm_start": None,
    }  # fmt: skip
    assert find_run_key(registry, "reviews", KEY) == mlflow_registry.Known(version.run_id, "registered", "1")
    run = registry.client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert len(run.outputs.model_outputs) == 1


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ({"prefix": "words", "version": "12", "adapter_digest": "5" * 64}, "words:12"),
        ({"adapter": "adapters/mine", "adapter_digest": "5" * 64}, "5" * 64),
    ],
)
def test_the_tag_of_its_origin_says_what_the_record_says(
    registry: Registry, adapter: Path, start: dict[str, str], said: str
) -> None:
    version = register(registry, adapter, warm_start=start)
    (listed,) = versions.list_all(registry)
    assert listed == version
    by_tag = versions.origin(registry, version)
    assert by_tag.warm_start == said
    registry.client.delete_model_version_tag("reviews", "1", versions.MADE_FROM)
    (untagged,) = versions.list_all(registry)
    assert versions.origin(registry, untagged) == by_tag


def test_registering_again_registers_nothing(registry: Registry, adapter: Path) -> None:
    first = register(registry, adapter)
    assert register(registry, adapter, created="2030-01-01T00:00:00+00:00") == first
    assert len(versions.list_versions(registry, "reviews")) == 1


def test_the_model_holds_adapter_and_record_but_no_pickle(registry: Registry, adapter: Path) -> None:
    version = register(registry, adapter)
    root = Path(
        registry.client.get_model_version_download_uri("reviews", version.version).removeprefix("file://")
    )
    names = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert {
        "artifacts/adapter/adapter_model.safetensors",
        "artifacts/lineage.json",
        "serving_model.py",
    } <= names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".bin"))]
    requirements = (root / "requirements.txt").read_text().splitlines()
    assert [line.split("==")[0] for line in requirements] == [
        "mlflow",
        "prefixline",
        "torch",
        "transformers",
        "safetensors",
    ]
    assert not [line for line in requirements if "+" in line]


@pytest.mark.parametrize("verdict", [{"passed": False}, {"passed": "yes"}, {}])
def test_a_verdict_that_did_not_pass_registers_nothing(
    registry: Registry, adapter: Path, verdict: dict[str, Any]
) -> None:
    with pytest.raises(RegistryError, match="did not pass"):
        register(registry, adapter, verdict=verdict)
    assert registry.client.search_registered_models() == []


def test_an_adapter_changed_since_it_was_recorded_is_not_registered(
    registry: Registry, adapter: Path
) -> None:
    run_id = start_run(registry, "reviews", KEY, params={})
    record = mlflow_world.record(adapter, run_id, KEY)
    (adapter / "adapter_model.safetensors").write_bytes(b"tampered")
    with pytest.raises(IntegrityError, match=r"adapter_model\.safetensors"):
        registration.register(
            registry, run_id=run_id, record=record, adapter=adapter, example=EXAMPLE, actor=mlflow_world.ACTOR
        )
    assert registry.client.search_registered_models() == []


def test_an_upload_that_fails_leaves_the_registry_as_it_was_and_a_repeat_completes_it(
    registry: Registry, adapter: Path, tmp_path: Path
) -> None:
    models = tmp_path / ".prefixline" / "mlartifacts" / "reviews" / "models"
    run_id = start_run(registry, "reviews", KEY, params={})
    experiment = registry.client.get_run(run_id).info.experiment_id
    models.parent.mkdir(parents=True, exist_ok=True)
    models.write_text("in the way")
    with pytest.raises(RegistryError):
        register(registry, adapter)
    assert registry.client.search_registered_models() == []
    assert find_run_key(registry, "reviews", KEY) is None
    assert [model.status for model in registry.client.search_logged_models([experiment])] == ["FAILED"]
    models.unlink()
    assert register(registry, adapter).version == "1"


def _stop(*arguments: Any, **named: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("step", "known"),
    [
        ("create_model_version", None),
        ("set_registered_model_alias", "incomplete"),
        ("set_terminated", "incomplete"),
    ],
)
def test_stopped_at_any_step_a_repeat_completes_the_same_one_version(
    registry: Registry, adapter: Path, monkeypatch: pytest.MonkeyPatch, step: str, known: str | None
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(registry.client, step, _stop)
        with pytest.raises(KeyboardInterrupt):
            register(registry, adapter)
    found = find_run_key(registry, "reviews", KEY)
    assert (found and found.outcome) == known
    if known:
        assert registration.complete(registry, "reviews", KEY, actor=mlflow_world.ACTOR).version == "1"
    assert register(registry, adapter).stages == ("candidate",)
    assert len(versions.list_versions(registry, "reviews")) == 1
    experiment = registry.client.get_experiment_by_name("reviews").experiment_id
    assert len(registry.client.search_logged_models([experiment])) == 1


def test_completing_what_was_never_registered_is_refused(registry: Registry) -> None:
    with pytest.raises(RegistryError, match="register it first"):
        registration.complete(registry, "reviews", KEY, actor=mlflow_world.ACTOR)


def _register(root: Path, run_id: str, barrier: Any, results: Any) -> None:
    registry = mlflow_world.database(root)
    record = mlflow_world.record(root / "adapter", run_id, KEY)
    real = registry.client.create_model_version

    def together(*arguments: Any, **named: Any) -> Any:
        barrier.wait(120)  # all have looked and found nothing
        return real(*arguments, **named)

    registry.client.create_model_version = together  # type: ignore[method-assign]
    version = registration.register(
        registry,
        run_id=run_id,
        record=record,
        adapter=root / "adapter",
        example=EXAMPLE,
        actor=mlflow_world.ACTOR,
    )
    results.put(version.version)


def test_four_processes_that_register_one_run_key_at_once_end_with_one_version_that_counts(
    adapter: Path, tmp_path: Path
) -> None:
    registry = mlflow_world.database(tmp_path)
    run_id = start_run(registry, "reviews", KEY, params={})
    # Not forked: a thread of an earlier test may hold a lock, which then nobody in the new process would release.
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(4), context.Queue()
    workers = [context.Process(target=_register, args=(tmp_path, run_id, barrier, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    answers = [results.get(timeout=180) for _ in workers]
    for worker in workers:
        worker.join()
    assert answers == ["1"] * 4
    assert candidate(registry) == "1"
    made = versions.list_versions(registry, "reviews")
    assert [version.version for version in made] == ["1", "2", "3", "4"]
    assert [version.duplicate_of for version in made] == [None, "1", "1", "1"]
    assert [version.stages for version in made] == [("candidate",), (), (), ()]
    assert find_run_key(registry, "reviews", KEY) == mlflow_registry.Known(run_id, "registered", "1")


def test_a_model_that_another_process_named_as_the_runs_output_first_is_registered(
    registry: Registry, adapter: Path
) -> None:
    real = registry.client.log_outputs

    def second(*arguments: Any) -> None:
        real(*arguments)
        real(*arguments)  # which MLflow refuses

    registry.client.log_outputs = second  # type: ignore[method-assign]
    version = register(registry, adapter)
    assert len(registry.client.get_run(version.run_id).outputs.model_outputs) == 1
    assert candidate(registry) == version.version


def test_an_output_that_mlflow_does_not_take_ends_the_registration(registry: Registry, adapter: Path) -> None:
    from mlflow.exceptions import MlflowException

    def refused(*arguments: Any) -> None:
        raise MlflowException("out of order")

    registry.client.log_outputs = refused  # type: ignore[method-assign]
    with pytest.raises(RegistryError, match=r"registering reviews: .*out of order"):
        register(registry, adapter)
    assert versions.list_versions(registry, "reviews") == ()


def test_two_runs_of_one_run_key_agree_on_the_version_and_say_so(registry: Registry, adapter: Path) -> None:
    first = register(registry, adapter)
    experiment = registry.client.get_run(first.run_id).info.experiment_id
    twin = registry.client.create_run(experiment, tags={mlflow_registry.RUN_KEY: KEY}).info.run_id
    record = mlflow_world.record(adapter, twin, KEY)
    assert (
        registration.register(
            registry, run_id=twin, record=record, adapter=adapter, example=EXAMPLE, actor=mlflow_world.ACTOR
        )
        == first
    )
    tags = registry.client.get_run(twin).data.tags
    assert tags[mlflow_registry.DUPLICATE_OF] == first.run_id
    assert (tags[mlflow_registry.OUTCOME], tags[mlflow_registry.VERSION]) == ("registered", "1")


def test_a_registration_whose_run_was_deleted_is_still_known_as_registered(
    registry: Registry, adapter: Path
) -> None:
    version = register(registry, adapter)
    registry.client.delete_run(version.run_id)
    assert find_run_key(registry, "reviews", KEY) == mlflow_registry.Known(version.run_id, "registered", "1")


def test_a_version_that_was_deleted_is_said_to_be_and_comes_again_once_its_run_is_deleted_too(
    registry: Registry, adapter: Path
) -> None:
    version = register(registry, adapter)
    registry.client.delete_model_version("reviews", version.version)
    with pytest.raises(
        RegistryError, match=f"version 1, made .* deleted in MLflow.*--run-id {version.run_id}"
    ):
        find_run_key(registry, "reviews", KEY)
    registry.client.delete_run(version.run_id)
    assert find_run_key(registry, "reviews", KEY) is None
    again = register(registry, adapter)
    assert (again.stages, again.run_id != version.run_id) == (("candidate",), True)


def test_the_newest_version_is_the_candidate(registry: Registry, adapter: Path) -> None:
    register(registry, adapter)
    register(registry, adapter, "2" * 64)
    assert candidate(registry) == "2"
    register(registry, adapter)
    assert candidate(registry) == "2"


def test_an_old_registration_completed_late_takes_no_alias_beside_a_newer_one(
    registry: Registry, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(registry.client, "set_registered_model_alias", _stop)
        with pytest.raises(KeyboardInterrupt):
            register(registry, adapter)
    register(registry, adapter, "2" * 64)
    assert candidate(registry) == "2"
    mlflow_world.promote(registry, "reviews", "2")
    assert registration.complete(registry, "reviews", KEY, actor=mlflow_world.ACTOR).stages == ()
    assert [version.stages for version in versions.list_versions(registry, "reviews")] == [
        (),
        ("production",),
    ]


def test_a_newer_version_that_appears_while_the_alias_is_written_keeps_it(
    registry: Registry, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = registry.client.set_registered_model_alias

    def interleaved(name: str, alias: str, version: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(registry.client, "set_registered_model_alias", real)
            register(registry, adapter, "2" * 64)
        real(name, alias, version)

    with monkeypatch.context() as patch:
        patch.setattr(registry.client, "set_registered_model_alias", interleaved)
        register(registry, adapter)
    assert candidate(registry) == "2"


def test_an_alias_that_another_process_inserts_at_the_same_moment_is_set_all_the_same(
    registry: Registry, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException

    real = registry.client.set_registered_model_alias
    calls: list[str] = []

    def beaten_once(name: str, alias: str, version: str) -> None:
        real(name, alias, version)  # the first time, the other process's
        calls.append(alias)
        if len(calls) == 1:
            raise MlflowException("UNIQUE constraint failed: registered_model_aliases.alias")

    monkeypatch.setattr(registry.client, "set_registered_model_alias", beaten_once)
    assert register(registry, adapter).stages == ("candidate",)
    assert calls == ["candidate", "candidate"]


def test_a_finished_registration_is_left_alone_after_its_version_was_moved_on(
    registry: Registry, adapter: Path
) -> None:
    register(registry, adapter)
    mlflow_world.promote(registry, "reviews", "1")
    assert register(registry, adapter).stages == ("production",)


@pytest.mark.parametrize("which", ["2", "staging", "@staging"])
def test_a_version_that_is_not_there_is_named_with_those_that_are(
    registry: Registry, adapter: Path, which: str
) -> None:
    register(registry, adapter)
    with pytest.raises(RegistryError, match=f"no version '{which}'; available: 1 @candidate"):
        versions.lookup(registry, "reviews", which)


def test_a_number_is_that_version_though_another_has_it_as_an_alias(
    registry: Registry, adapter: Path
) -> None:
    register(registry, adapter)
    register(registry, adapter, "2" * 64)
    registry.client.set_registered_model_alias("reviews", "1", "2")
    registry.client.set_registered_model_alias("reviews", "theirs", "2")
    found = {which: versions.lookup(registry, "reviews", which).version.version for which in ("1", "theirs")}
    assert found == {"1": "1", "theirs": "2"}


def test_a_prefix_without_versions_says_so(registry: Registry) -> None:
    with pytest.raises(RegistryError, match="available: none"):
        versions.lookup(registry, "reviews", "candidate")
    assert versions.list_versions(registry, "reviews") == ()


def test_a_question_mlflow_cannot_take_is_an_error_of_ours(registry: Registry) -> None:
    with pytest.raises(RegistryError, match="refused"):
        versions.list_versions(registry, "x' or '")


def test_a_tampered_lineage_record_is_refused(registry: Registry, adapter: Path, tmp_path: Path) -> None:
    register(registry, adapter)
    (path,) = (tmp_path / ".prefixline").rglob("lineage.json")
    path.write_bytes(path.read_bytes().replace(b'"passed":true', b'"passed":true '))
    with pytest.raises(IntegrityError, match=r"lineage\.json: SHA-256 is"):
        versions.lookup(registry, "reviews", "1")


def test_a_version_registered_by_hand_is_refused(registry: Registry, adapter: Path) -> None:
    register(registry, adapter)
    registry.client.create_model_version("reviews", adapter.as_uri(), await_creation_for=0)
    with pytest.raises(RegistryError, match="not registered by prefixline"):
        versions.lookup(registry, "reviews", "2")
    register(registry, adapter, "2" * 64)
    assert candidate(registry) == "3"


def test_a_version_whose_files_are_gone_is_an_error_of_ours(
    registry: Registry, adapter: Path, tmp_path: Path
) -> None:
    register(registry, adapter)
    shutil.rmtree(tmp_path / ".prefixline" / "mlartifacts")
    with pytest.raises(RegistryError, match=r"downloading artifacts/lineage\.json"):
        versions.lookup(registry, "reviews", "1")


def test_the_champion_is_downloaded_once_and_hashed_every_time(
    registry: Registry, adapter: Path, tmp_path: Path
) -> None:
    adapters = tmp_path / "adapters"
    assert versions.production(registry, "reviews") is None
    register(registry, adapter)
    assert versions.production(registry, "reviews") is None
    mlflow_world.promote(registry, "reviews", "1")
    found = versions.production(registry, "reviews")
    assert found is not None
    champion = versions.fetch(registry, found, adapters)
    assert champion.version == "1"
    assert champion.folder == adapters / champion.adapter_digest
    assert manifest(champion.folder) == manifest(adapter)
    assert versions.fetch(registry, found, adapters) == champion
    (champion.folder / "adapter_model.safetensors").write_bytes(b"tampered")
    with pytest.raises(IntegrityError, match=r"adapter_model\.safetensors: SHA-256"):
        versions.fetch(registry, found, adapters)


def test_a_champion_tampered_with_in_mlflow_is_refused_and_not_kept(
    registry: Registry, adapter: Path, tmp_path: Path
) -> None:
    register(registry, adapter)
    mlflow_world.promote(registry, "reviews", "1")
    (stored,) = (tmp_path / ".prefixline").rglob("adapter_model.safetensors")
    stored.write_bytes(b"tampered")
    found = versions.lookup(registry, "reviews", "production")
    with pytest.raises(IntegrityError, match=r"adapter_model\.safetensors"):
        versions.fetch(registry, found, tmp_path / "adapters")
    assert list((tmp_path / "adapters").iterdir()) == []


def test_a_champion_whose_tag_names_another_adapter_is_refused(
    registry: Registry, adapter: Path, tmp_path: Path
) -> None:
    register(registry, adapter)
    mlflow_world.promote(registry, "reviews", "1")
    registry.client.set_model_version_tag("reviews", "1", versions.ADAPTER_DIGEST, "0" * 64)
    found = versions.lookup(registry, "reviews", "production")
    with pytest.raises(IntegrityError, match="names another adapter"):
        versions.fetch(registry, found, tmp_path / "adapters")
