"""`prefixline impact` over many versions of large dataset versions.

    python -m benchmarks.impact [--versions 10000] [--datasets 20] [--rows 1000000] [--through-api 20]
        [--store sqlite|postgresql]

Builds its own world in a temporary folder: a workspace, MLflow on sqlite or PostgreSQL, and row indexes of random entries, of which
every second one holds the row that is asked about. The first versions go through MLflow's public API, at some 20 ms
each; the others are copies of what it wrote, made in the database, since 10,000 would take minutes. Every fourth
version went on from the one before. Each question is asked in a process of its own. Prints JSON, for each question:
seconds of the answer by the clock and of processor time, with the libraries imported and the database open; of these
the processor time in which MLflow lists the versions; peak resident memory; and the versions found. Then the same of
the whole command, once.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import sqlalchemy

from pipeline.environment import quiet_environment
from pipeline.tracking.connection import MLFLOW_URI
from tests import mlflow_world

TEXT = "the row that somebody wants erased"
BASE = "b" * 64
PREFIXES = 10


def build(root: Path, args: argparse.Namespace) -> dict[str, float]:
    """The world; seconds of its parts, and what it takes on disk."""
    import numpy as np

    from pipeline.data.row_index import ENTRY_BYTES, Columns, entry, write
    from pipeline.ledger.registration import enter
    from pipeline.register import registry
    from pipeline.server_access import endpoints
    from pipeline.state import row_index_file
    from pipeline.versioning import git
    from pipeline.versioning.workspace import init_workspace

    init_workspace(root)
    commit = git.resolve(root, "HEAD")
    draw = np.random.default_rng(0)
    started = time.perf_counter()
    indexes = []
    size = 0
    for number in range(args.datasets):
        content = draw.bytes((args.rows - 1) * ENTRY_BYTES)
        own = entry("classification", TEXT if number % 2 == 0 else f"row {number}", "label")
        scratch = root / "index"
        digest = write(scratch, Columns("classification", "text", "label"), content + own)
        size += scratch.stat().st_size
        target = row_index_file(root, digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.replace(target)
        indexes.append(digest)
    indexed = time.perf_counter()
    where = endpoints(root)
    connection = registry.connect(where.mlflow_uri, artifact_root=where.artifact_root)
    client = connection.client
    for number in range(PREFIXES):
        client.create_registered_model(f"prefix-{number}")
    client.get_registered_model("prefix-0")
    connected = time.perf_counter()
    through_api = max(args.through_api, PREFIXES)
    for number in range(through_api):
        client.create_model_version(
            f"prefix-{number % PREFIXES}", f"file:///{number}", tags=tags(number, indexes, commit),
            await_creation_for=0,
        )  # fmt: skip
    added = time.perf_counter()
    copy_versions(where.mlflow_uri, through_api, args.versions, indexes, commit)
    for number in range(PREFIXES):
        enter(
            connection, f"prefix-{number}", str(args.versions // PREFIXES), lineage_digest="a" * 64,
            verdict_digest="b" * 64, actor="benchmark", reason="measured",
        )  # fmt: skip
    return {
        "seconds per index": round((indexed - started) / args.datasets, 3),
        "bytes a row": round(size / args.datasets / args.rows, 3),
        "seconds per version through MLflow": round((added - connected) / through_api, 4),
    }


def tags(number: int, indexes: list[str], commit: str | None) -> dict[str, str]:
    """A version's tags, as registration writes them."""
    from pipeline.register import versions
    from pipeline.register.origin import MADE_FROM, Origin
    from pipeline.register.registry import RUN_KEY

    own, before = number // PREFIXES + 1, number // PREFIXES
    dataset = number // PREFIXES % len(indexes)
    origin = Origin(
        dataset_md5=f"{dataset:032x}",
        base_digest=BASE,
        code_commit=commit or "",
        row_index=indexes[dataset],
        warm_start=f"prefix-{number % PREFIXES}:{before}" if own % 4 == 0 else None,
    )
    return {
        RUN_KEY: f"{number:064x}",
        versions.LINEAGE_DIGEST: f"{number:064x}",
        versions.ADAPTER_DIGEST: f"{number:064x}",
        versions.DATASET_MD5: origin.dataset_md5,
        versions.BASE_DIGEST: origin.base_digest,
        MADE_FROM: origin.tag(),
    }


def copy_versions(uri: str, first: int, count: int, indexes: list[str], commit: str | None) -> None:
    """Versions `first` to `count` as copies of the first one's rows, with tags of their own."""
    engine = sqlalchemy.create_engine(uri)
    with engine.begin() as connection:
        tables = sqlalchemy.MetaData()
        tables.reflect(connection, only=["model_versions", "model_version_tags"])
        versions, version_tags = tables.tables["model_versions"], tables.tables["model_version_tags"]
        version = dict(connection.execute(sqlalchemy.select(versions).limit(1)).mappings().one())
        tag = dict(connection.execute(sqlalchemy.select(version_tags).limit(1)).mappings().one())
        keys = [
            {"name": f"prefix-{number % PREFIXES}", "version": number // PREFIXES + 1}
            for number in range(first, count)
        ]
        connection.execute(versions.insert(), [{**version, **key} for key in keys])
        connection.execute(
            version_tags.insert(),
            [
                {**tag, **key, "key": name, "value": value}
                for number, key in enumerate(keys, first)
                for name, value in tags(number, indexes, commit).items()
            ],
        )
    engine.dispose()


def ask(root: Path, kind: Any, asked: str) -> dict[str, Any]:
    """In this process: one question, with MLflow imported and its store opened before."""
    from pipeline.audit.impact import impact
    from pipeline.register import registry, versions
    from pipeline.server_access import endpoints

    where = endpoints(root)
    registry.connect(where.mlflow_uri, artifact_root=where.artifact_root).client.search_registered_models()
    inner = versions.list_all
    listing = 0.0

    def timed(connection: registry.Registry) -> Any:
        nonlocal listing
        before = time.process_time()
        found = inner(connection)
        listing += time.process_time() - before
        return found

    versions.list_all = timed  # type: ignore[assignment]
    gc.disable()  # as the command does
    started, processor = time.perf_counter(), time.process_time()
    found = impact(root, kind, asked)
    return {
        "seconds": round(time.perf_counter() - started, 2),
        "processor seconds": round(time.process_time() - processor, 2),
        "of these listing": round(listing, 2),
        "peak MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "found": len(found["versions"]),
        "searched": found["searched"],
        "complete": found["complete"],
    }


def in_process(root: Path, kind: str, asked: str) -> dict[str, Any]:
    """One question in a process of its own."""
    environment = {**os.environ, **quiet_environment(), "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "benchmarks.impact", "--ask", str(root), kind, asked]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def whole_command(root: Path, kind: str, asked: str) -> dict[str, float]:
    """What the command takes, imports and all."""
    environment = {**os.environ, **quiet_environment(), "PYTHONPATH": str(Path(__file__).parents[1])}
    start = "from pipeline.cli import main; main()"
    command = [sys.executable, "-c", start, "-w", str(root), "impact", f"--{kind}", asked, "--json"]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, env=environment, capture_output=True, check=True)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(seconds, 2), "processor seconds": round(processor, 2)}


def main() -> None:
    """Build, ask, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--versions", type=int, default=10_000)
    parser.add_argument("--datasets", type=int, default=20)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--through-api", type=int, default=20)
    parser.add_argument("--store", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--ask", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.update(quiet_environment())
    if args.ask:
        print(json.dumps(ask(Path(args.ask[0]), *args.ask[1:])))
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch).resolve() / "workspace"
        os.environ[MLFLOW_URI] = mlflow_world.backend(Path(scratch) / "mlflow.db", args.store)
        result: dict[str, Any] = {key: vars(args)[key] for key in ("store", "versions", "datasets", "rows")}
        result |= build(root, args)
        from pipeline.versioning import git

        questions = {
            "a row of half of the datasets": ("row", TEXT),
            "a row of none": ("row", "no such row"),
            "a dataset version": ("dataset", f"{3:032x}"),
            "the base of all": ("base", BASE),
            "the commit of all": ("code", git.resolve(root, "HEAD") or ""),
        }
        result["questions"] = {what: in_process(root, *asked) for what, asked in questions.items()}
        result["the command"] = whole_command(root, "row", TEXT)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the server ends, too
    main()
