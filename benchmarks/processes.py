"""Training with several processes against one, with the same number of threads in all: throughput, and equal losses.

    python -m benchmarks.processes --data FOLDER [--processes 2] [--sources 8] [--steps 12] [--pairs 5] [--threads 2]

Both sides train the same steps by `pipeline.train` on this machine, started by `pipeline.train.launch`: a random Llama of 6
layers of 384 with 32,000 words, the data that of `benchmarks/training.py`, `--sources` with three references each in a step.
They run in turns. Timed is what the steps take, without the first one, the start and the validations; the losses must agree
to 1e-4 at each step, or the benchmark fails. Prints JSON: targets a second, and the ratio of each pair, smallest / median /
largest.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.kills import finished, forked, prepare, train
from benchmarks.training import spread
from pipeline.train.launch import launch


def main() -> None:
    """Measure both sides in turns and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--sources", type=int, default=8, help="in a step, with three references each")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="of all processes together")
    parser.add_argument("--checkpoint-seconds", type=float, default=1e9, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.root:
        train(arguments.folder, arguments.root, arguments)
        return
    sides: dict[int, list[dict[str, Any]]] = {1: [], arguments.processes: []}
    furthest = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        finished(forked(lambda: prepare(arguments.data, folder, arguments.steps * arguments.sources)))
        for pair in range(arguments.pairs):
            for processes, runs in sides.items():
                print(f"pair {pair + 1} of {arguments.pairs}: {processes}", file=sys.stderr)
                root = folder / f"{pair}-{processes}"
                own = ["--folder", str(folder), "--root", str(root)]
                launch(processes, "benchmarks.processes", [*sys.argv[1:], *own], threads=arguments.threads)
                runs.append(measured(root / "out" / "curves.jsonl"))
            one, several = (runs[-1]["losses"] for runs in sides.values())
            furthest = max(furthest, *(abs(a - b) for a, b in zip(one, several, strict=True)))
            if furthest > 1e-4:
                sys.exit(f"the losses differ by {furthest:g}: these are not the same trainings")
    rates = {count: [run["targets"] / run["seconds"] for run in runs] for count, runs in sides.items()}
    result = {key: getattr(arguments, key) for key in ("processes", "sources", "steps", "threads")}
    result |= {"shape": "llama", "data": arguments.data.name, "largest_loss_difference": furthest}
    result |= {"targets_per_second": {count: spread(found) for count, found in rates.items()}}
    pairs = zip(rates[1], rates[arguments.processes], strict=True)
    result["several_are_faster_by"] = spread([several / one for one, several in pairs])
    print(json.dumps(result, indent=2))


def measured(curves: Path) -> dict[str, Any]:
    """Seconds, targets and losses of all steps but the first."""
    lines = [json.loads(line) for line in curves.read_text().splitlines()]
    seconds, targets, losses = 0.0, 0.0, []
    for before, line in itertools.pairwise(lines):
        if line["kind"] == "step":
            seconds += line["seconds"] - before["seconds"]
            targets += (line["seconds"] - before["seconds"]) * line["targets_per_second"]
            losses.append(line["loss"])
    return {"seconds": seconds, "targets": targets, "losses": losses}


if __name__ == "__main__":
    main()
