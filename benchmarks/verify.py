"""`prefixline verify` of many versions beside `sha256sum` over the same bytes.

    python benchmarks/verify.py [--versions 100] [--megabytes 8] [--base-megabytes 100] [--pairs 3]

Makes a workspace in a temporary folder with VERSIONS registered versions of one prefix, each with an adapter of
MEGABYTES, one base model and one dataset version; the experiments' commits and their stored outputs are written straight
into git and DVC's cache. Then, in turns: `verify` in a fresh process (imports not counted, and said on their own), and
`sha256sum` of the coreutils, and Python's hashlib in one thread, over the list of files that `verify` hashed. All are read once
before, so that all come from the page cache. Prints JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline.base.base_files import identity_files
from pipeline.data.card import rows_root
from pipeline.digest import canonical_json, digest, manifest
from pipeline.environment import quiet_environment
from pipeline.params import DataParams
from pipeline.register import lineage, registration, registry
from pipeline.register.lineage import LineageRecord
from pipeline.versioning import git
from pipeline.versioning.snapshot import snapshot
from pipeline.versioning.workspace import Workspace, init_workspace

NAME = "alpha"
CODE = {"version": "0.1.0", "digest": "8" * 64}
VERIFY = """\
import json, sys, time
from pathlib import Path
from pipeline.audit import hashing, verification
import mlflow, dvc.repo
seen = []
real = hashing._hash
hashing._hash = lambda path: (seen.append(str(path)), real(path))[1]
started, cpu = time.perf_counter(), time.process_time()
found = verification.verify(Path(sys.argv[1]))
seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
print(json.dumps({"sound": found.sound, "versions": len(found.versions), "seconds": seconds, "cpu": cpu, "bytes": found.bytes,
                  "files": found.files, "seen": seen}))
"""


def write(path: Path, content: bytes) -> Path:
    """Put `content` at `path`, which it gives back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def cache(root: Path, content: bytes, kind: str = "") -> str:
    """Put `content` into DVC's cache; its hash."""
    md5 = hashlib.md5(content).hexdigest() + kind
    write(root / ".dvc/cache/files/md5" / md5[:2] / md5[2:], content)
    return md5


def cache_folder(root: Path, files: dict[str, bytes]) -> str:
    """Put a folder into DVC's cache; its hash."""
    listing = [{"md5": cache(root, content), "relpath": name} for name, content in sorted(files.items())]
    return cache(root, json.dumps(listing).encode(), ".dir")


def experiment(
    root: Path, baseline: str, key: str, pins: dict[str, Any], stages: dict[str, dict[str, Any]], lock: str
) -> str:
    """A commit like that of a DVC experiment, under the reference that keeps it."""
    files = {f"pins/{NAME}.json": json.dumps(pins), "dvc.lock": lock}
    files |= {f"artifacts/{NAME}/{name}.json": json.dumps(content) for name, content in stages.items()}
    index = {**os.environ, "GIT_INDEX_FILE": str(root / ".git/bench-index")}
    made = "".join(
        f"100644 {subprocess.run(['git', 'hash-object', '-w', '--stdin'], cwd=root, input=text, text=True, capture_output=True, check=True).stdout.strip()}\t{name}\n"
        for name, text in files.items()
    )
    subprocess.run(["git", "read-tree", "--empty"], cwd=root, env=index, check=True)
    subprocess.run(
        ["git", "update-index", "--index-info"], cwd=root, env=index, input=made, text=True, check=True
    )
    tree = subprocess.run(
        ["git", "write-tree"], cwd=root, env=index, text=True, capture_output=True, check=True
    ).stdout.strip()
    who = ["-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost"]
    commit = git.run(root, *who, "commit-tree", tree, "-p", baseline, "-m", "Experiment").strip()
    git.run(root, "update-ref", f"refs/prefixline/{NAME}/{key}", commit)
    return commit


def make(
    root: Path, count: int, adapter_bytes: int, base_bytes: int, rows: int, uri: str | None = None
) -> registry.Registry:
    """The workspace with everything in it; its MLflow, which is at `uri`, by default on sqlite in the workspace."""
    draw = random.Random(0)
    workspace: Workspace = init_workspace(root)
    write(root / "base/config.json", b'{"model_type": "bert"}')
    write(root / "base/tokenizer.json", b'{"model": {}}')
    write(root / "base/model.safetensors", draw.randbytes(base_bytes))
    files = identity_files(root / "base")
    base: dict[str, Any] = {
        "name": "tiny",
        "digest": digest(files),
        "source": {"path": "base"},
        "files": files,
    }
    (root / "params.yaml").write_text(
        f"base_models: {{tiny: {{source: {{path: base}}, digest: {base['digest']}}}}}\n"
        f"prefixes: {{{NAME}: {{base_model: tiny, task: classification, data: {{path: data/rows.jsonl}}}}}}\n"
    )
    git.commit(root, ["params.yaml"], "One prefix")
    write(root / "data/rows.jsonl", b"".join(b'{"text": "%d", "label": "x"}\n' % i for i in range(rows)))
    data = snapshot(workspace, NAME, DataParams(path="data/rows.jsonl"))
    baseline = git.run(root, "rev-parse", "HEAD").strip()
    ids = b"".join(sorted(draw.randbytes(16) for _ in range(rows)))
    prepared = {"row_ids": ids, **{f"{split}/rows.txt": b"rows" for split in ("train", "validation", "test")}}
    prepared_md5 = cache_folder(root, prepared)
    first: dict[str, Any] = {
        "manifest": {f"prepared/{name}": hashlib.sha256(content).hexdigest() for name, content in prepared.items()},
        "rows": {"train": rows - 2, "validation": 1, "test": 1},
        "labels": ["x"], "row_ids": hashlib.sha256(ids).hexdigest(), "row_root": rows_root(ids),
    }  # fmt: skip
    connection = registry.connect(
        uri or f"sqlite:///{root}/.prefixline/mlflow.db",
        artifact_root=(root / ".prefixline/mlartifacts").as_uri(),
    )
    for number in range(count):
        params = {"task": "classification", "training": {"seed": number}}
        key = lineage.run_key(
            dataset_md5=data.md5, manifest=data.manifest, base_digest=base["digest"], params=params,
            code_digest=CODE["digest"], warm_start=None,
        )  # fmt: skip
        adapter = {"adapter_config.json": b"{}", "adapter_model.safetensors": draw.randbytes(adapter_bytes)}
        folder = root.parent / "adapter"
        for name, content in adapter.items():
            write(folder / name, content)
        stages: dict[str, dict[str, Any]] = {
            "prepared": first,
            "trained": {"manifest": {f"adapter/{name}": sha for name, sha in manifest(folder).items()}},
            "evaluated": {"manifest": {}, "systems": {"prefix": {"accuracy": 0.9}}},
        }
        outs: dict[str, list[tuple[str, str | None]]] = {
            "prepare": [("prepared", prepared_md5), ("prepared.json", None)],
            "train": [("adapter", cache_folder(root, adapter)), ("trained.json", None)],
            "evaluate": [("evaluated.json", None)],
        }
        lock = {
            f"{stage}@{NAME}": {
                "outs": [
                    {
                        "path": f"artifacts/{NAME}/{path}",
                        "md5": md5
                        or hashlib.md5(json.dumps(stages[path.split(".")[0]]).encode()).hexdigest(),
                    }
                    for path, md5 in parts
                ]
            }
            for stage, parts in outs.items()
        }
        pins = {"run_key": key, "base_model": base, "code": CODE, "warm_start": None, "params": params,
                "data": {"md5": data.md5, "manifest": dict(data.manifest)}}  # fmt: skip
        commit = experiment(root, baseline, key, pins, stages, json.dumps({"stages": lock}))
        run_id = registry.start_run(connection, NAME, key, params={})
        record = LineageRecord(
            prefix=NAME, run_key=key, files=manifest(folder), adapter_digest=digest(manifest(folder)), base_model=base,
            dataset={
                "path": data.path, "md5": data.md5, "git_commit": data.git_commit, "manifest": dict(data.manifest),
                "rows": {**first["rows"], "total": rows}, "labels": first["labels"],
                "splits": lineage.split_digests(first["manifest"]), "row_ids": first["row_ids"],
                "row_root": first["row_root"],
            },
            params=params, code={"commit": baseline, "dirty": False, **CODE},
            environment=lineage.environment_identity(), experiment={"commit": commit, "name": key[:12]},
            runs={"mlflow": run_id, "prefect": None}, metrics=stages["evaluated"]["systems"],
            verdict={"passed": True, "criteria": []}, seed=number, created="2026-01-01T00:00:00+00:00",
        )  # fmt: skip
        kept = root.parent / "kept"
        write(kept / "lineage.json", record.to_json())
        write(kept / "lock.json", canonical_json(lineage.installed()))
        registry.log_files(connection, run_id, sorted(kept.iterdir()))
        registration.register(
            connection, run_id=run_id, record=record, adapter=folder, example=["a"], actor="benchmark"
        )
        print(f"\r{number + 1} of {count} versions", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return connection


def verify(root: Path) -> dict[str, Any]:
    """What `VERIFY` prints of a run in a fresh process, and the seconds it took to start and import."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", VERIFY, str(root)], cwd=Path(__file__).parents[1],
        env={**os.environ, **quiet_environment(), "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    result: dict[str, Any] = json.loads(done.stdout)
    result["imports"] = time.perf_counter() - started - result["seconds"]
    return result


def timed(command: list[str], names: str) -> tuple[float, float]:
    """(seconds, CPU seconds)."""
    before = os.times()
    started = time.perf_counter()
    subprocess.run(command, input=names, text=True, stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - started, cpu


def main() -> None:
    """Make the world, run the pairs, print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--versions", type=int, default=100)
    parser.add_argument("--megabytes", type=float, default=8)
    parser.add_argument("--base-megabytes", type=float, default=100)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--pairs", type=int, default=3)
    chosen = parser.parse_args()
    os.environ.update(quiet_environment())
    folder = Path(tempfile.mkdtemp())
    try:
        root = folder / "workspace"
        make(
            root, chosen.versions, int(chosen.megabytes * 1e6), int(chosen.base_megabytes * 1e6), chosen.rows
        )
        warm = verify(root)
        assert warm["sound"], "the world is not sound"
        names = "\0".join(warm["seen"]) + "\0"
        one_thread = [sys.executable, "-c", "import sys; from pathlib import Path; from pipeline.digest import sha256_file\n"
                      "for name in sys.stdin.read().split(chr(0))[:-1]: sha256_file(Path(name))"]  # fmt: skip
        timed(["xargs", "-0", "sha256sum"], names)
        pairs = []
        for _ in range(chosen.pairs):
            ours = verify(root)
            theirs, python = timed(["xargs", "-0", "sha256sum"], names), timed(one_thread, names)
            pairs.append(
                {
                    "verify": ours["seconds"], "verify_cpu": ours["cpu"], "imports": ours["imports"],
                    "sha256sum": theirs[0], "sha256sum_cpu": theirs[1], "hashlib": python[0], "hashlib_cpu": python[1],
                    "ratio": ours["seconds"] / theirs[0], "ratio_cpu": ours["cpu"] / theirs[1],
                    "ratio_hashlib_cpu": ours["cpu"] / python[1],
                }
            )  # fmt: skip
        print(
            json.dumps(
                {
                    "versions": warm["versions"], "files": warm["files"], "bytes": warm["bytes"], "pairs": pairs,
                    "median": {name: round(statistics.median(pair[name] for pair in pairs), 3) for name in pairs[0]},
                    "load": os.getloadavg(),
                },
                indent=2,
            )
        )  # fmt: skip
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
