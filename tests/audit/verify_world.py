"""A whole small workspace for audits: git, DVC, MLflow and a base model, real; only the stages stand in."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base.base_files import identity_files
from pipeline.digest import canonical_json, digest, manifest
from pipeline.params import DataParams
from pipeline.register import lineage, registration
from pipeline.register.registry import RUN_KEY, Registry, log_files, start_run
from pipeline.register.versions import RegisteredVersion
from pipeline.versioning import git
from pipeline.versioning.experiment import run_experiment
from pipeline.versioning.snapshot import snapshot
from pipeline.versioning.stored import fetch_outputs, push_outputs
from pipeline.versioning.workspace import Workspace, init_workspace, read_json_at, write_pins
from tests import mlflow_world, records

PARAMS = """\
base_models: {tiny: {source: {path: base}, digest: "%s"}}
prefixes:
  alpha: {base_model: tiny, task: classification, data: {path: data/rows.jsonl}}
  beta: {base_model: tiny, task: classification, data: {path: data/folder}}
"""
DATA = {"alpha": "data/rows.jsonl", "beta": "data/folder"}
CODE = {"version": "0.1.0", "digest": "8" * 64}


@dataclass(frozen=True)
class World:
    """A workspace and how to do things in it as the line does."""

    root: Path

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.root)

    @property
    def registry(self) -> Registry:
        return mlflow_world.database(self.root)

    def retrain(self, name: str, *, warm_start: dict[str, str] | None = None) -> RegisteredVersion:
        """Version the data as it is, run the stages, register what came of it."""
        workspace, registry = self.workspace, self.registry
        data = snapshot(workspace, name, DataParams(path=DATA[name]))
        base = mlflow_world.base_record(self.root / "base", self.root)
        pins: dict[str, Any] = {
            "base_model": base,
            "code": CODE,
            "data": {"md5": data.md5, "manifest": dict(data.manifest)},
            "champion": None,
            "warm_start": warm_start,
            "params": {
                "task": "classification",
                "data": {"path": DATA[name], "slices": []},
                "prefix": {"length": 4},
                "training": {"learning_rate": 0.1},
                "evaluation": {"batch_size": 2},
            },
        }
        pins["run_key"] = key = lineage.run_key(
            dataset_md5=data.md5, manifest=data.manifest, base_digest=base["digest"], params=pins["params"],
            code_digest=CODE["digest"], warm_start=None if warm_start is None else warm_start["adapter_digest"],
        )  # fmt: skip
        run_id = start_run(registry, name, key, params=pins["params"])
        baseline = write_pins(workspace, name, pins)
        experiment = run_experiment(workspace, name, key, {}, lambda text: None, baseline=baseline)
        push_outputs(workspace, experiment.commit, name)
        folder = fetch_outputs(workspace, experiment.commit, name, "train", workspace.state / "fetched" / key)
        prepared = read_json_at(workspace, experiment.commit, f"artifacts/{name}/prepared.json")
        evaluated = read_json_at(workspace, experiment.commit, f"artifacts/{name}/evaluated.json")
        record = records.lineage(
            prefix=name,
            run_key=key,
            files=manifest(folder / "adapter"),
            base_model=base,
            dataset={
                "path": data.path,
                "md5": data.md5,
                "git_commit": data.git_commit,
                "manifest": dict(data.manifest),
                "rows": {**prepared["rows"], "total": sum(prepared["rows"].values())},
                "labels": prepared["labels"],
                "splits": lineage.split_digests(prepared["manifest"]),
                "row_ids": prepared["row_ids"],
                "row_root": prepared["row_root"],
            },
            params=pins["params"],
            code={"commit": experiment.baseline, "dirty": False, **CODE},
            environment=lineage.environment_identity(),
            experiment={"commit": experiment.commit, "name": experiment.name},
            runs={"mlflow": run_id, "prefect": None},
            metrics=evaluated["systems"],
            warm_start=warm_start,
        )
        kept = workspace.state / "kept" / key
        kept.mkdir(parents=True)
        (kept / "lineage.json").write_bytes(record.to_json())
        (kept / "lock.json").write_bytes(canonical_json(lineage.installed()))
        log_files(registry, run_id, sorted(kept.iterdir()))
        return registration.register(
            registry,
            run_id=run_id,
            record=record,
            adapter=folder / "adapter",
            example=["a"],
            actor=mlflow_world.ACTOR,
        )

    def run_key(self, name: str, version: str) -> str:
        """The run key of a version."""
        return str(self.registry.client.get_model_version(name, version).tags[RUN_KEY])

    def artefact(self, name: str, version: str) -> Path:
        """The model folder of a version."""
        uri = self.registry.client.get_model_version_download_uri(name, version)
        return Path(uri.removeprefix("file://"))

    def add_rows(self, count: int) -> None:
        """Give alpha's data `count` more rows."""
        path = self.root / DATA["alpha"]
        there = path.read_text()
        more = [
            json.dumps({"text": f"row {len(there)} {i}", "label": "xy"[i % 2]}) + "\n" for i in range(count)
        ]
        path.write_text(there + "".join(more))

    def save(self, folder: Path) -> None:
        """Keep a copy of everything in `folder`."""
        shutil.copytree(self.root, folder, symlinks=True)

    def restore(self, folder: Path) -> None:
        """Make everything as it was when it was saved in `folder`.

        MLflow's database stays the file it is: MLflow keeps it open, and would go on with one that is deleted.
        """
        database, aside = self.root / ".prefixline/mlflow.db", self.root.with_name("mlflow.db")
        database.rename(aside)
        shutil.rmtree(self.root)
        shutil.copytree(folder, self.root, symlinks=True)
        database.unlink()
        aside.rename(database)
        with (
            closing(sqlite3.connect(folder / ".prefixline/mlflow.db")) as saved,
            closing(sqlite3.connect(database)) as own,
        ):
            saved.backup(own)


def make(root: Path) -> World:
    """A workspace with data and a base model, and nothing retrained yet."""
    init_workspace(root)
    base = root / "base"
    base.mkdir()
    (base / "config.json").write_text('{"model_type": "bert"}')
    (base / "model.safetensors").write_bytes(bytes(range(256)))
    (base / "tokenizer.json").write_text('{"model": {}}')
    (root / "params.yaml").write_text(PARAMS % digest(identity_files(base)))
    text = (root / "dvc.yaml").read_text()
    assert text.count("python -m pipeline.stages") == 3
    (root / "dvc.yaml").write_text(text.replace("python -m pipeline.stages", "python stage.py"))
    shutil.copyfile(Path(__file__).with_name("stage.py"), root / "stage.py")
    (root / "data/folder/deep").mkdir(parents=True)
    (root / "data/folder/one.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (root / "data/folder/deep/more.jsonl").write_text('{"text": "three"}\n')
    world = World(root)
    (root / DATA["alpha"]).write_text("")
    world.add_rows(7)
    names = ["params.yaml", "dvc.yaml", "stage.py", *(f"base/{path.name}" for path in sorted(base.iterdir()))]
    git.commit(root, names, "Two prefixes")
    return world
