"""`prefixline history` of a prefix with many versions.

    python -m benchmarks.history [--versions 10000] [--store sqlite|postgresql] [--through direct|server] [--profile]

Builds its own workspace in a temporary folder: one prefix, of which every version was registered, and every tenth went to staging
and on to production, so that what production held went to archived. The events are made in memory and written through
MLflow's public API, a hundred at a time. The history is then read in a process of its own, with the libraries imported and
the store open. Prints JSON: of each part seconds by the clock and of processor time (the client's alone, with a server), peak
resident memory, and the whole command, imports and all, with `--json` and as a person reads it. `--profile` adds the
functions that took the most processor time themselves.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import io
import json
import os
import pstats
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from pipeline.environment import quiet_environment
from pipeline.ledger.events import Event
from pipeline.tracking.connection import MLFLOW_URI
from tests import mlflow_world

NAME = "reviews"
PARAMS = """\
base_models:
  tiny: {source: {path: base}, digest: "0000000000000000000000000000000000000000000000000000000000000000"}
prefixes:
  reviews:
    base_model: tiny
    task: classification
    data: {path: data/reviews.jsonl}
    gate: {floors: {accuracy: 0.5}}
"""
BATCH = 100
"""Params in one request of MLflow's."""

SHOWN = 12
"""Functions of a profile."""


def events(versions: int) -> list[Event]:
    """A whole chain: each version registered, every tenth then taken to production."""
    from pipeline.ledger.events import NOTHING, Promoted, Registered
    from pipeline.ledger.fold import State, following, standing_after_each

    made: list[Event] = []
    stages: Mapping[Any, str] = {}

    def steps() -> Iterator[tuple[Any, Any, int]]:
        for number in range(1, versions + 1):
            yield Registered, "candidate", number
            if number % 10 == 0:
                yield Promoted, "staging", number
                yield Promoted, "production", number

    def chained() -> Iterator[Event]:
        for kind, stage, number in steps():
            head = made[-1].digest if made else NOTHING
            made.append(
                following(
                    State(len(made), head, stages), kind, prefix=NAME, version=str(number), stage=stage,
                    actor="benchmark <benchmark@localhost>", reason="measured", lineage_digest="a" * 64,
                    verdict_digest="b" * 64,
                )
            )  # fmt: skip
            yield made[-1]

    for after in standing_after_each(chained()):
        stages = after
    return made


def build(root: Path, uri: str, versions: int) -> dict[str, Any]:
    """The workspace, and the ledger in MLflow at `uri`; how many events that has, and what writing them took."""
    from mlflow.entities import Param

    from pipeline.ledger import log
    from pipeline.register import registry
    from pipeline.server_access import endpoints
    from pipeline.versioning.workspace import init_workspace

    init_workspace(root)
    (root / "params.yaml").write_text(PARAMS)
    chained = events(versions)
    where = endpoints(root)
    connection = registry.connect(uri, artifact_root=where.artifact_root)
    connection.client.create_registered_model(NAME)
    assert log.claim(connection, chained[0])
    run_id = log.read(connection, NAME).run_id
    started = time.perf_counter()
    for start in range(1, len(chained), BATCH):
        batch = [
            Param(f"{event.epoch:06d}", event.to_json().decode()) for event in chained[start : start + BATCH]
        ]
        connection.client.log_batch(run_id, params=batch)
    seconds = time.perf_counter() - started
    reading = log.read(connection, NAME)
    assert len(reading.events) == len(chained)
    log.mark(connection, reading)
    return {"events": len(chained), "seconds to write them": round(seconds, 1)}


@contextmanager
def timed(parts: dict[str, Any], what: str) -> Iterator[None]:
    """Add what the block takes to `parts`."""
    started, processor = time.perf_counter(), time.process_time()
    yield
    seconds, used = time.perf_counter() - started, time.process_time() - processor
    parts[what] = {"seconds": round(seconds, 2), "processor seconds": round(used, 2)}


def ask(root: Path, profile: bool) -> dict[str, Any]:
    """In this process: the parts of the command, with MLflow imported and its store opened before."""
    from pipeline.cli.common import print_json
    from pipeline.cli.stages import EVENTS_SHOWN
    from pipeline.ledger import log
    from pipeline.register import registry
    from pipeline.server_access import endpoints
    from pipeline.show.overview import history_of
    from pipeline.show.terminal import show_history

    where = endpoints(root)
    connection = registry.connect(where.mlflow_uri, artifact_root=where.artifact_root)
    run_id = connection.client.get_experiment_by_name(log.POINTER + NAME).tags[log.RUN_TAG]
    parts: dict[str, Any] = {}
    gc.disable()  # as the command does
    with timed(parts, "of reading: MLflow's get_run"):
        connection.client.get_run(run_id)
    watch = cProfile.Profile(time.process_time)
    if profile:
        watch.enable()
    with timed(parts, "reading, checking and folding"):
        told = history_of(root, NAME)
    with timed(parts, "printing --json"), redirect_stdout(io.StringIO()):
        print_json(told)
    with timed(parts, "printing for a person"), redirect_stdout(io.StringIO()):
        show_history(told, newest=EVENTS_SHOWN)
    watch.disable()
    parts["peak MB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    if profile:
        parts["profile, own processor seconds"] = slowest(watch)
    return parts


def slowest(watch: cProfile.Profile) -> dict[str, float]:
    """{function: seconds in it alone}, the slowest first."""
    found = {
        f"{'/'.join(Path(file).parts[-2:])}:{name}": own
        for (file, _, name), (_, _, own, _, _) in pstats.Stats(watch).stats.items()  # type: ignore[attr-defined]
    }
    return {name: round(found[name], 3) for name in sorted(found, key=lambda key: -found[key])[:SHOWN]}


def in_process(root: Path, profile: bool) -> dict[str, Any]:
    """`ask` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.history", "--ask", str(root), *["--profile"] * profile]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def whole_command(root: Path, *options: str) -> dict[str, float]:
    """What the command takes, imports and all."""
    start = "from pipeline.cli import main; main()"
    command = [sys.executable, "-c", start, "-w", str(root), "history", NAME, *options]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(seconds, 2), "processor seconds": round(processor, 2)}


def main() -> None:
    """Build, ask, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--versions", type=int, default=10_000)
    parser.add_argument("--store", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--through", choices=["direct", "server"], default="direct")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--ask", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.update(quiet_environment())
    if arguments.ask:
        print(json.dumps(ask(arguments.ask, arguments.profile)))
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        uri = mlflow_world.backend(folder / "mlflow.db", arguments.store)
        if arguments.through == "server":
            uri = stack.enter_context(mlflow_world.server(folder, mlflow_world.free_port(), uri=uri))
        os.environ[MLFLOW_URI] = uri
        root = folder / "workspace"
        result: dict[str, Any] = {key: vars(arguments)[key] for key in ("versions", "store", "through")}
        result |= build(root, uri, arguments.versions)
        result |= in_process(root, arguments.profile)
        result["the command with --json"] = whole_command(root, "--json")
        result["the command"] = whole_command(root)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the server ends, too
    main()
