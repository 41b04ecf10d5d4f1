"""A workspace with real git, DVC and MLflow whose versions are registered without training anything."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerFast

from pipeline.data.dataset import prepare
from pipeline.data.row_index import ROW_INDEX
from pipeline.digest import canonical_json, digest, manifest
from pipeline.ledger.registration import enter
from pipeline.params import DataParams, SplitParams
from pipeline.register import versions
from pipeline.register.lineage import LineageRecord
from pipeline.register.origin import Origin
from pipeline.register.registry import RUN_KEY, Registry
from pipeline.state import row_index_file
from pipeline.versioning.workspace import init_workspace
from tests import git_dvc, mlflow_world, records

BASE = "b" * 64
TASKS = {"text": "classification", "source": "generation"}


@dataclass
class World:
    """Registers versions of made-up prefixes in a real workspace.

    Attributes:
        prepared: the prepared folder that each row index was made in.
        records: the lineage record of each version, and the file it lies in.
    """

    root: Path
    scratch: Path
    registry: Registry
    number: itertools.count[int] = field(default_factory=itertools.count)
    prepared: dict[str, Path] = field(default_factory=dict)
    records: dict[tuple[str, str], tuple[LineageRecord, Path]] = field(default_factory=dict)

    def index(
        self,
        rows: Sequence[Mapping[str, Any]],
        tokenizer: PreTrainedTokenizerFast,
        splits: SplitParams | None = None,
        *,
        keep: bool = True,
        **params: Any,
    ) -> str:
        """Prepare the rows as a dataset version; the digest of its row index, which `keep` puts into the state."""
        raw = self.scratch / f"rows{next(self.number)}.jsonl"
        raw.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        task = (
            TASKS[next(key for key in rows[0] if key in TASKS)]
            if "task" not in params
            else params.pop("task")
        )
        data = DataParams(path=raw.name, splits=splits or SplitParams(), **params)
        out = raw.with_suffix("")
        summary = prepare(raw, data, task, tokenizer=tokenizer, window=40, prefix_length=4, out=out)
        if keep:
            target = row_index_file(self.root, summary.row_index)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(out / ROW_INDEX, target)
        self.prepared[summary.row_index] = out
        return summary.row_index

    def stand(self, name: str, version: str, stage: Literal["candidate", "staging", "production"]) -> None:
        """Enter a version into the ledger, as its registration would, and move it up to `stage`."""
        record, _ = self.records[name, version]
        enter(
            self.registry, name, version, lineage_digest=record.digest, verdict_digest=record.verdict_digest,
            actor=mlflow_world.ACTOR, reason="passed the gate",
        )  # fmt: skip
        if stage != "candidate":
            mlflow_world.promote(self.registry, name, version, to=stage)

    def register(
        self,
        name: str = "words",
        *,
        row_index: str | None = None,
        md5: str = "d" * 32,
        base: str = BASE,
        commit: str = "9" * 40,
        warm_start: Mapping[str, str] | None = None,
        experiment: str = "7" * 40,
        weights: str | None = None,
        tagged: bool = True,
    ) -> str:
        """One version with the tags that registration writes; `tagged=False`: without the one of its origin.

        Its model holds the lineage record and an adapter of a few bytes, which is all that an audit or a promotion reads
        of it and takes a twentieth of the time. Its number follows from those there are.
        """
        number = next(self.number)
        model = self.scratch / f"model{number}"
        (model / versions.ADAPTER_PATH).mkdir(parents=True)
        adapter = canonical_json({"weights": weights or number})
        (model / versions.ADAPTER_PATH / "adapter_model.safetensors").write_bytes(adapter)
        record = records.lineage(
            prefix=name,
            run_key=digest({"number": number}),
            files={"adapter_model.safetensors": hashlib.sha256(adapter).hexdigest()},
            base_model={"name": "tiny", "digest": base, "source": {"path": "base"}, "files": {}},
            code={"commit": commit, "version": "0.1.0", "digest": "8" * 64, "dirty": False},
            experiment={"commit": experiment, "name": "exp"},
            warm_start=warm_start,
            dataset={
                "path": "data/rows.jsonl",
                "md5": md5,
                "git_commit": "e" * 40,
                "manifest": {},
                "labels": None,
                "rows": {"train": 8, "validation": 1, "test": 1, "total": 10},
                "splits": {"train": "2" * 64, "validation": "3" * 64, "test": "4" * 64},
                "row_ids": "5" * 64,
                "row_root": "0" * 64,
                **({} if row_index is None else {"row_index": row_index}),
            },
        )
        (model / "artifacts/lineage.json").write_bytes(record.to_json())
        listing = canonical_json(manifest(model))
        (model / versions.MANIFEST_FILE).write_bytes(listing)
        client = self.registry.client
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        tags = {
            RUN_KEY: record.run_key,
            versions.LINEAGE_DIGEST: record.digest,
            versions.ADAPTER_DIGEST: record.adapter_digest,
            versions.DATASET_MD5: md5,
            versions.BASE_DIGEST: base,
            versions.MANIFEST_DIGEST: hashlib.sha256(listing).hexdigest(),
        }
        if tagged:
            tags[versions.MADE_FROM] = Origin.of_record(record).tag()
        made = client.create_model_version(name, model.as_uri(), tags=tags, await_creation_for=0)
        self.records[name, str(made.version)] = (record, model / "artifacts/lineage.json")
        return str(made.version)

    def warm(self, name: str, version: str) -> dict[str, str]:
        """What a lineage record says of a training that went on from this version."""
        record, _ = self.records[name, version]
        return {"prefix": name, "version": version, "adapter_digest": record.adapter_digest}

    def change_tag(self, name: str, version: str, **changes: str) -> None:
        """Rewrite what the tag of a version's origin says, as somebody might by hand."""
        tag = json.loads(self.registry.client.get_model_version(name, version).tags[versions.MADE_FROM])
        value = canonical_json(tag | changes).decode()
        self.registry.client.set_model_version_tag(name, version, versions.MADE_FROM, value)

    def commit(self, message: str = "Change") -> str:
        """A new commit; its id."""
        git_dvc.run(self.root, "git", "commit", "-q", "--allow-empty", "-m", message)
        return git_dvc.head(self.root)

    def experiment(self, name: str, prepared: Path) -> str:
        """Store `prepared` as the prepare stage of an experiment of the prefix `name` does; the commit."""
        folder = self.root / "data" / f"stored{next(self.number)}"
        shutil.copytree(prepared, folder)
        relative = folder.relative_to(self.root).as_posix()
        git_dvc.snapshot(self.root, relative)
        record = json.dumps({"manifest": {f"prepared/{path}": sha for path, sha in manifest(folder).items()}})
        target = self.root / "artifacts" / name / "prepared.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(record)
        lock = {
            "schema": "2.0",
            "stages": {
                f"prepare@{name}": {
                    "cmd": "none",
                    "outs": [
                        {"path": f"artifacts/{name}/prepared", "md5": git_dvc.md5(self.root, relative)},
                        {
                            "path": f"artifacts/{name}/prepared.json",
                            "md5": hashlib.md5(record.encode(), usedforsecurity=False).hexdigest(),
                        },
                    ],
                }
            },
        }
        (self.root / "dvc.lock").write_text(json.dumps(lock))
        git_dvc.run(self.root, "git", "add", "-f", "dvc.lock", str(target))
        git_dvc.run(self.root, "git", "commit", "-qm", "Experiment")
        return git_dvc.head(self.root)


def make(folder: Path) -> World:
    """A new one below `folder`."""
    root = init_workspace(folder / "workspace").root
    mlflow_world.database(folder / "empty")
    (root / ".prefixline").mkdir(exist_ok=True)
    shutil.copyfile(folder / "empty/.prefixline/mlflow.db", root / ".prefixline/mlflow.db")
    return open_world(folder)


def open_world(folder: Path) -> World:
    """The one whose workspace is, or was copied, below `folder`."""
    (folder / "scratch").mkdir()
    root = folder / "workspace"
    return World(root, folder / "scratch", mlflow_world.database(root))
