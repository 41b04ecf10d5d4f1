"""A version is made again from its record: against a real training, and against stages that stand in for one."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.audit.remade import DEFAULT_TOLERANCE, Difference, Figure
from pipeline.audit.reproduction import Remade, Reproduction, compared, reproduce
from pipeline.digest import digest, manifest
from pipeline.errors import BaseModelError, IntegrityError, RegistryError, WorkspaceError
from pipeline.register import registration, registry, versions
from pipeline.register.registry import start_run
from pipeline.show.terminal_reproduction import show_reproduction
from pipeline.versioning import git
from tests import mlflow_world
from tests.audit.verify_world import DATA, World
from tests.line import Line


def state_of(root: Path) -> Mapping[str, Any]:
    """What a reproduction must leave as it is: files, refs, runs, models; DVC's cache and run cache among the files."""
    client = mlflow_world.database(root).client
    runs = [
        run.to_dictionary()
        for experiment in client.search_experiments()
        for run in client.search_runs([experiment.experiment_id])
    ]
    own = (
        ".git/",
        ".dvc/tmp/",
        ".prefixline/mlflow.db",
        ".prefixline/reproduction.lock",
        ".prefixline/logs/",
    )
    files = {name: sha for name, sha in manifest(root).items() if not name.startswith(own)}
    return {
        "files": files,
        "status": git.run(root, "status", "--porcelain"),
        "refs": git.run(root, "for-each-ref"),
        "worktrees": git.run(root, "worktree", "list"),
        "runs": json.dumps(runs, sort_keys=True, default=str),
        "models": [str(model) for model in client.search_registered_models()],
    }


# -- a real training --------------------------------------------------------------------------------------------


def test_a_version_is_made_again_to_the_bit_and_nothing_else_changes(trained_line: Line) -> None:
    line = trained_line
    record = line.json("lineage", "words:1")
    left = line.root / ".prefixline/reproduction/copy"  # as a run that was killed leaves it
    left.mkdir(parents=True)
    (left / "half").write_text("")
    before = state_of(line.root)
    done = line.run("reproduce", "words:1", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["result"], told["reproduced"], told["files"]) == ("identical", True, [])
    assert told["identical_files"] == len(record["files"]) == 2
    assert (told["prepared"], told["environment"]) == ([], [])
    figures = {(f["system"], f["metric"]): (f["recorded"], f["now"]) for f in told["metrics"]}
    recorded = {
        (system, metric): value
        for system in ("prefix", "base")
        for metric, value in record["metrics"][system].items()
    }
    assert figures == {key: (value, value) for key, value in recorded.items()}
    assert (
        "step " in done.stderr
    )  # the training could be watched, and did not go on from the other's checkpoint
    after = state_of(line.root)
    assert not left.parent.exists()
    before["files"].pop(".prefixline/reproduction/copy/half")  # type: ignore[attr-defined]
    assert {key: after[key] for key in after if after[key] != before[key]} == {}


def test_other_kernels_give_other_bits_and_the_tolerance_decides(trained_line: Line) -> None:
    """torch without AVX rounds otherwise, which is what another processor does."""
    plain = {"ATEN_CPU_CAPABILITY": "default"}
    exact = [option for metric in DEFAULT_TOLERANCE for option in ("--tolerance", f"{metric}=0")]
    done = trained_line.run("reproduce", "words:1", "--json", *exact, env=plain)
    told = json.loads(done.stdout)
    assert [file["what"] for file in told["files"]] == ["adapter_model.safetensors"]
    assert told["identical_files"] == 1
    assert told["prepared"] == []
    (loss,) = [f for f in told["metrics"] if (f["system"], f["metric"]) == ("prefix", "loss")]
    assert 0 < abs(loss["recorded"] - loss["now"]) < DEFAULT_TOLERANCE["loss"]
    assert (done.returncode, told["result"], loss["within"]) == (5, "different", False)


def test_ctrl_c_in_the_training_leaves_nothing(trained_line: Line) -> None:
    before = state_of(trained_line.root)
    process = trained_line.start("reproduce", "words:1")
    assert process.stderr is not None
    assert any("step " in output for output in process.stderr)
    assert (trained_line.root / ".prefixline/reproduction/copy").is_dir()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert state_of(trained_line.root) == before


# -- the comparison ---------------------------------------------------------------------------------------------


def made_from(record: Any, **changes: Any) -> Remade:
    return replace(
        Remade(
            files=dict(record.files),
            splits=dict(record.dataset["splits"]),
            metrics=dict(record.metrics),
            code={key: record.code[key] for key in ("version", "digest")},
            environment=dict(record.environment),
            installed={"torch": "2.13.0", "numpy": "2.4.6"},
        ),
        **changes,
    )


def compare(
    untouched: World, remade: Remade, lock: Mapping[str, str] | None = None, **changes: Any
) -> Reproduction:
    record = replace(recorded(untouched, "alpha", "1"), **changes)
    return compared("1", record, lock, remade, DEFAULT_TOLERANCE, 1.0)


def recorded(world: World, name: str, version: str) -> Any:
    return versions.lookup(world.registry, name, version).record


def test_everything_that_ran_and_is_not_what_was_recorded_is_named(untouched: World) -> None:
    record = recorded(untouched, "alpha", "1")
    installed = {"torch": "2.13.0", "numpy": "2.4.6"}
    now = made_from(
        record,
        environment={**record.environment, "python": "3.99.0", "lock": "9" * 64},
        code={"version": "0.2.0", "digest": record.code["digest"]},
        installed=installed,
    )
    lock = {"torch": "2.12.0", "numpy": "2.4.6", "gone": "1.0"}
    found = compare(untouched, now, lock)
    assert found.environment == (
        Difference("prefixline version", record.code["version"], "0.2.0"),
        Difference("python", record.environment["python"], "3.99.0"),
        Difference("package gone", "1.0", None),
        Difference("package torch", "2.12.0", "2.13.0"),
    )
    assert (found.result, found.files) == ("identical", ())
    without = compare(untouched, now)  # the lock cannot be had: its digest still tells
    assert Difference("lock", record.environment["lock"], "9" * 64) in without.environment


def test_files_metrics_and_prepared_rows_are_compared_each_by_itself(
    untouched: World, capsys: pytest.CaptureFixture[str]
) -> None:
    record = recorded(untouched, "alpha", "1")
    files = {**record.files, "adapter_model.safetensors": "0" * 64}
    near = {**record.metrics, "prefix": {"accuracy": 0.905}}
    far = {**record.metrics, "prefix": {"accuracy": 0.9051}}
    lost = {"prefix": {"accuracy": None}, "base": record.metrics["base"]}
    results = {
        name: compare(untouched, made_from(record, files=files, metrics=metrics))
        for name, metrics in {"near": near, "far": far, "lost": lost}.items()
    }
    assert {name: found.result for name, found in results.items()} == {
        "near": "within tolerance", "far": "different", "lost": "different",
    }  # fmt: skip
    assert results["far"].metrics[0] == Figure("prefix", "accuracy", 0.9, 0.9051, 0.005)
    assert (len(results["near"].files), results["near"].identical_files) == (1, 1)
    # The bits are right and the figures are not: the evaluation is another, which must not pass as reproduced.
    assert compare(untouched, made_from(record, metrics=far)).result == "different"
    splits = {**record.dataset["splits"], "test": "1" * 64}
    (split,) = compare(untouched, made_from(record, splits=splits)).prepared
    assert (split.what, split.now) == ("test", "1" * 64)
    show_reproduction(results["far"].to_json())
    shown = capsys.readouterr().out
    assert "alpha version 1 is not reproduced" in shown
    assert "too far off" in shown


def test_metrics_without_a_tolerance_must_be_equal() -> None:
    assert Figure("prefix", "loss", 0.5, 0.5, 0.0).within
    assert not Figure("prefix", "loss", 0.5, 0.5 + 1e-15, 0.0).within
    assert Figure("prefix", "accuracy", 0.8, 0.805, 0.005).within
    assert Figure("prefix", "bleu", None, None, 0.5).within


# -- what it is made from ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["alpha@candidate", "beta:1"])
def test_each_version_is_made_again_from_what_its_record_names(untouched: World, which: str) -> None:
    before = state_of(untouched.root)
    found = reproduce(untouched.root, which)
    assert (found.result, found.files, found.prepared) == ("identical", (), ())
    assert found.version == {"alpha@candidate": "2"}.get(which, "1")
    # The stand-in's versions are registered with a made-up digest of prefixline's sources.
    assert [difference.what for difference in found.environment] == ["prefixline digest"]
    assert state_of(untouched.root) == before


def test_what_the_cache_lacks_comes_from_the_remote_and_what_nobody_has_is_named(world: World) -> None:
    md5 = recorded(world, "alpha", "1").dataset["md5"]
    cached = world.root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    cached.unlink()
    assert reproduce(world.root, "alpha:1").result == "identical"
    cached.unlink()
    (world.root / ".prefixline/dvc-remote/files/md5" / md5[:2] / md5[2:]).unlink()
    with pytest.raises(WorkspaceError, match=f"neither DVC's cache nor its remote has {md5}"):
        reproduce(world.root, "alpha:1")
    assert not (world.root / ".prefixline/reproduction").exists()


def test_data_that_was_tampered_with_is_not_trained_on(world: World) -> None:
    record = recorded(world, "alpha", "1")
    md5 = record.dataset["md5"]
    cached = world.root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    cached.chmod(0o644)
    cached.write_bytes(cached.read_bytes().replace(b"row", b"raw"))
    with pytest.raises(IntegrityError, match=Path(DATA["alpha"]).name):
        reproduce(world.root, "alpha:1")


def test_a_base_model_that_is_gone_or_another_is_named(world: World) -> None:
    weights = world.root / "base/model.safetensors"
    weights.write_bytes(bytes(8))
    with pytest.raises(IntegrityError, match="are not the pinned base model"):
        reproduce(world.root, "alpha:1")
    shutil.rmtree(world.root / "base")
    with pytest.raises(BaseModelError, match="base"):
        reproduce(world.root, "alpha:1")


def test_the_version_a_training_went_on_from_is_fetched_and_verified(world: World) -> None:
    weights = world.artefact("alpha", "1") / "artifacts/adapter/adapter_model.safetensors"
    weights.write_bytes(b"others")
    with pytest.raises(IntegrityError, match=r"adapter_model\.safetensors"):
        reproduce(world.root, "beta:1")
    world.registry.client.delete_model_version("alpha", "1")
    with pytest.raises(RegistryError, match="alpha: no version '1'"):
        reproduce(world.root, "beta:1")


def test_a_version_by_hand_one_that_is_not_there_and_a_wrong_name_are_refused(world: World) -> None:
    world.registry.client.create_model_version("alpha", "file:///nowhere")
    for which, said in (
        ("alpha:3", "not registered by prefixline"),
        ("alpha:9", "no version '9'"),
        ("alpha", "expected NAME:NUMBER or NAME@STAGE"),
    ):
        with pytest.raises(RegistryError, match=said):
            reproduce(world.root, which)


def test_an_experiment_that_is_not_the_records_is_refused(world: World) -> None:
    """A record whose experiment was started with other pins: two records that contradict each other."""
    one, two = (recorded(world, "alpha", number) for number in "12")
    run_id = start_run(world.registry, "alpha", "9" * 64, params={})
    forged = replace(
        one, experiment=two.experiment, runs={"mlflow": run_id, "prefect": None}, run_key="9" * 64
    )
    adapter = world.artefact("alpha", "1") / "artifacts/adapter"
    registration.register(
        world.registry, run_id=run_id, record=forged, adapter=adapter, example=["a"], actor=mlflow_world.ACTOR
    )
    with pytest.raises(IntegrityError, match=r"run_key: got '[0-9a-f]{64}', expected '9+'"):
        reproduce(world.root, "alpha:3")
    with pytest.raises(WorkspaceError, match=f"has no commit {'4' * 40}"):
        _with_commit(world, one, "4" * 40)


def _with_commit(world: World, record: Any, commit: str) -> None:
    run_id = start_run(world.registry, "alpha", "8" * 64, params={})
    made = replace(
        record, experiment={**record.experiment, "commit": commit}, run_key="8" * 64,
        runs={"mlflow": run_id, "prefect": None},
    )  # fmt: skip
    adapter = world.artefact("alpha", "1") / "artifacts/adapter"
    number = registration.register(
        world.registry, run_id=run_id, record=made, adapter=adapter, example=["a"], actor=mlflow_world.ACTOR
    ).version
    reproduce(world.root, f"alpha:{number}")


def test_the_lock_is_believed_only_where_its_digest_is_the_recorded_one(world: World) -> None:
    record = recorded(world, "alpha", "1")
    lock = registry.read_json(world.registry, record.runs["mlflow"], "lock.json")
    assert digest(lock) == record.environment["lock"]
    path = Path(
        world.registry.client.get_run(record.runs["mlflow"]).info.artifact_uri.removeprefix("file://")
    )
    (path / "lock.json").write_text("{}")
    found = reproduce(world.root, "alpha:1")
    # Believed, it would show every package as new; its digest alone says that all is installed as then.
    assert [difference.what for difference in found.environment] == ["prefixline digest"]
