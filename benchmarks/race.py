"""Processes that promote different versions of one prefix at once, at full size.

    python -m benchmarks.race --store sqlite|postgresql --through direct|server [--processes 16] [--rounds 200] [--ledgers 1]

The tests' race (tests/ledger/race.py), which runs 4 processes and 4 rounds there: in every round all processes have read
the same epoch, then all claim the next one. Checked at the end, by an AssertionError if it is not so: one winner an epoch,
every other process told by whom it was beaten, a whole chain of events, aliases equal to the ledger. With `--ledgers`
the rounds are shared out among as many races, one after the other, each with a database of its own: whoever loses reads
the whole ledger, which grows by the number of processes a round. PostgreSQL is a server of its own in a temporary folder,
with its usual settings. Prints JSON; seconds are by the clock, of everything but registering the versions.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from pipeline.environment import quiet_environment
from pipeline.register import registry as mlflow_registry
from tests import mlflow_world
from tests.ledger import race


def main() -> None:
    """Run it and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", choices=["sqlite", "postgresql"], required=True)
    parser.add_argument("--through", choices=["direct", "server"], required=True)
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--ledgers", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.rounds % arguments.ledgers:
        parser.error(
            f"--rounds {arguments.rounds} cannot be shared out among --ledgers {arguments.ledgers} evenly"
        )
    counts: Counter[str] = Counter()
    seconds = 0.0
    for number in range(arguments.ledgers):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            database = mlflow_world.backend(folder / "mlflow.db", arguments.store)
            if arguments.through == "server":
                served = mlflow_world.server(folder, mlflow_world.free_port(), uri=database)
                registry = mlflow_registry.connect(stack.enter_context(served))
            else:
                registry = mlflow_registry.connect(database, artifact_root=(folder / "files").as_uri())
            race.register(registry, folder, arguments.processes)
            started = time.perf_counter()
            counts.update(race.check(registry, arguments.processes, arguments.rounds // arguments.ledgers))
            seconds += time.perf_counter() - started
        print(f"ledger {number + 1} of {arguments.ledgers}: {dict(counts)}", file=sys.stderr)
    print(json.dumps({**vars(arguments), **counts, "seconds": round(seconds, 1)}, indent=2))


if __name__ == "__main__":
    import os

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the server ends, too
    os.environ.update(quiet_environment())
    main()
