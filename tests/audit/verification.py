"""What was found of a version, and what somebody does to one behind everybody's back."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.audit.faults import Fault, Verification
from pipeline.digest import canonical_json, digest, sha256_file
from pipeline.register import versions
from pipeline.register.lineage import LineageRecord
from pipeline.versioning.experiment import anchor
from tests import git_dvc
from tests.audit.verify_world import World
from tests.workspaces import tamper


def faults(found: Verification, version: str = "alpha:1") -> list[Fault]:
    """What was found of one version."""
    (one,) = [v for v in found.versions if f"{v.name}:{v.version}" == version]
    return list(one.faults)


def kinds(found: list[Fault]) -> set[tuple[str, str, str]]:
    return {(str(fault.kind), str(fault.link), fault.where) for fault in found}


def record(world: World, version: str = "alpha:1") -> LineageRecord:
    path = world.artefact(*version.split(":")) / "artifacts/lineage.json"
    return LineageRecord.from_json(path.read_bytes())


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    tamper(path, bytes(content))


def database(world: World, statement: str, *values: str) -> None:
    """What somebody who can write MLflow's database does to it."""
    with sqlite3.connect(world.root / ".prefixline/mlflow.db") as connection:
        assert connection.execute(statement, values).rowcount >= 1
    connection.close()


def lock_file(world: World, version: str) -> Path:
    run = world.registry.client.get_model_version("alpha", version).run_id
    uri = world.registry.client.get_run(run).info.artifact_uri
    return Path(uri.removeprefix("file://")) / "lock.json"


def rewrite_record(world: World, **changes: Any) -> None:
    """Forge alpha's first record everywhere: record, its copy, manifest and tags, so that it is whole again."""
    client, folder = world.registry.client, world.artefact("alpha", "1")
    made = json.loads((folder / "artifacts/lineage.json").read_bytes())
    forged = canonical_json({**made, **changes})
    (folder / "artifacts/lineage.json").write_bytes(forged)
    lock_file(world, "1").with_name("lineage.json").write_bytes(forged)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["artifacts/lineage.json"] = sha256_file(folder / "artifacts/lineage.json")
    (folder / "manifest.json").write_bytes(canonical_json(manifest))
    run = client.get_model_version("alpha", "1").run_id
    (model,) = [output.model_id for output in client.get_run(run).outputs.model_outputs]
    tags = {
        versions.LINEAGE_DIGEST: digest(json.loads(forged)),
        versions.MANIFEST_DIGEST: sha256_file(folder / "manifest.json"),
    }
    client.set_logged_model_tags(model, tags)
    for tag, value in tags.items():
        client.set_model_version_tag("alpha", "1", tag, value)


def commit_as_experiment(world: World, change: Callable[[Path], None]) -> str:
    """Alpha's first experiment with something else in it, and the record rewritten to name it."""
    made = record(world)
    copy = world.root / ".prefixline/forge"
    git_dvc.run(world.root, "git", "worktree", "add", "-q", "--detach", str(copy), made.experiment["commit"])
    change(copy)
    git_dvc.run(copy, "git", "add", "-A")
    git_dvc.run(copy, "git", "commit", "-q", "--amend", "-m", "Forged")
    commit = git_dvc.head(copy)
    git_dvc.run(world.root, "git", "update-ref", anchor("alpha", world.run_key("alpha", "1")), commit)
    rewrite_record(world, experiment={**made.experiment, "commit": commit})
    return commit
