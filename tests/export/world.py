"""A workspace with versions whose adapters are real, and bundles of them; nothing is trained."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.digest import canonical_json
from pipeline.keys import make_key
from pipeline.register import registration, versions
from pipeline.register.registry import Registry, start_run
from pipeline.versioning.workspace import init_workspace
from tests import mlflow_world, tiny

NAME = "reviews"
METRICS = {"prefix": {"accuracy": 0.9125, "f1": 0.5, "kappa": None}, "base": {"accuracy": 0.5}}
DATA = {
    "path": "data/rev|iews`.jsonl",
    "md5": "d" * 32,
    "git_commit": "e" * 40,
    "manifest": {"rev|iews`.jsonl": "f" * 64},
    "rows": {"train": 800, "validation": 100, "test": 100, "total": 1000},
    "splits": {"train": "2" * 64, "validation": "3" * 64, "test": "4" * 64},
    "row_ids": "5" * 64,
    "row_root": "0" * 64,
    "labels": None,
}


@dataclass(frozen=True)
class World:
    """Two versions of one prefix: the first in production, the second staged; a key; and a bundle of the first."""

    root: Path
    registry: Registry
    base: Path
    key: Path
    public: str
    bundle: Path
    unsigned: Path

    def run(self, *arguments: str, expect: int = 0) -> Result:
        """The command, as a person runs it in the workspace."""
        return run("-w", str(self.root), *arguments, expect=expect)


def run(*arguments: str, expect: int = 0) -> Result:
    done = CliRunner().invoke(main, list(arguments))
    assert done.exit_code == expect, f"{done.exception!r}\n{done.output}"
    return done


def make(folder: Path) -> World:
    root = init_workspace(folder / "workspace").root
    registry = mlflow_world.database(root)
    base = tiny.tiny_encoder(root / "base", scale=0.3)
    recorded = mlflow_world.base_record(base, root)
    start: dict[str, str] | None = None
    for key, seed in (("1", 1), ("2", 2)):
        adapter = mlflow_world.adapter(recorded, "classification", root, folder / key / "adapter", seed=seed)
        register(registry, adapter, recorded, warm_start=start)
        start = {
            "prefix": NAME,
            "version": "1",
            "adapter_digest": tag(registry, "1", versions.ADAPTER_DIGEST),
        }
    mlflow_world.promote(registry, NAME, "1")
    mlflow_world.promote(registry, NAME, "2", to="staging")
    public = make_key(folder / "key.pem").public
    world = World(root, registry, base, folder / "key.pem", public, folder / "signed", folder / "unsigned")
    world.run("export", f"{NAME}:1", "--out", str(world.bundle), "--key", str(world.key))
    world.run("export", f"{NAME}@staging", "--out", str(world.unsigned))
    return world


def register(
    registry: Registry, adapter: Path, base: dict[str, Any] | None = None, task: str = "classification",
    *, name: str = NAME, **changes: Any,
) -> str:  # fmt: skip
    """A version whose adapter is in the folder `adapter`."""
    changes = {"prefix": name, "metrics": METRICS, "dataset": DATA, **changes}
    run_key = mlflow_world.record(adapter, "0" * 32, "1" * 64, base, task, **changes).made_run_key()
    run_id = start_run(registry, name, run_key, params={})
    record = mlflow_world.record(adapter, run_id, run_key, base, task, **changes)
    return registration.register(
        registry, run_id=run_id, record=record, adapter=adapter, example=["a"], actor=mlflow_world.ACTOR
    ).version


def tag(registry: Registry, version: str, name: str) -> str:
    return str(registry.client.get_model_version(NAME, version).tags[name])


def files(folder: Path) -> list[str]:
    """Every file below a folder, sorted."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def faults(bundle: Path, *arguments: str) -> set[tuple[str, str, str]]:
    """{(kind, link, where)} of all that the command finds wrong; its exit code is 5 exactly where there is any."""
    done = CliRunner().invoke(main, ["verify", "--offline", str(bundle), "--json", *arguments])
    assert done.exit_code in (0, 5), f"{done.exception!r}\n{done.output}"
    found = json.loads(done.stdout)
    (version,) = found["versions"]
    told = {(fault["kind"], fault["link"], fault["where"]) for fault in version["faults"]}
    assert found["sound"] is (not told) is (done.exit_code == 0)
    return told


def copied(bundle: Path, folder: Path) -> Path:
    """A copy of a bundle, to change."""
    return Path(shutil.copytree(bundle, folder / "copy", symlinks=True))


def rewrite(bundle: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Change a file, and SHA256SUMS with it, as somebody would who does not want it to show."""
    path = bundle / name
    path.write_bytes(change(path.read_bytes()))
    sum_up(bundle)


def sum_up(bundle: Path) -> None:
    """Write SHA256SUMS anew, over whatever lies there."""
    names = [name for name in files(bundle) if name != "SHA256SUMS"]
    lines = [f"{sha((bundle / name).read_bytes())}  {name}\n" for name in names]
    (bundle / "SHA256SUMS").write_text("".join(lines))


def edit(change: Callable[[Any], object]) -> Callable[[bytes], bytes]:
    """The change of a JSON file's bytes that does `change` to its value in place."""

    def edited(content: bytes) -> bytes:
        value = json.loads(content)
        change(value)
        return canonical_json(value)

    return edited
