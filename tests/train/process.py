"""One of the processes that train together in the tests: `python -m tests.train.process FILE`, under a launcher.

FILE holds runs, each of which is one training, and its result the next line of FILE.RANK.jsonl. A run: {"task", "base",
"prepared", "root", "training", "rank1": {what the process of rank 1 has otherwise}, "act": [rank, step, what
happens in it], "own_group": true where the program forms the group by itself, as one under accelerate would}.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.environment import quiet_environment
from pipeline.train import launched

os.environ.update(quiet_environment())

import torch
from torch import distributed

from pipeline.digest import digest
from pipeline.errors import PrefixlineError
from pipeline.train import training_loop
from pipeline.train.training_loop import Loop
from tests.train.bench import Bench, resolved


def kill(number: signal.Signals) -> Callable[[Loop], None]:
    return lambda loop: os.kill(os.getpid(), number)


def full_disk(loop: Loop) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))


def other_numbers(loop: Loop) -> None:
    with torch.no_grad():
        next(iter(loop.trained.values())).reshape(-1)[0] += 1e-3


def other_base(loop: Loop) -> None:
    with torch.no_grad():
        next(loop._model.base_model.parameters())[5, 5] += 1e-3


ACTS: dict[str, Callable[[Loop], None]] = {
    "SIGTERM": kill(signal.SIGTERM),
    "SIGINT": kill(signal.SIGINT),
    "SIGKILL": kill(signal.SIGKILL),
    "full_disk": full_disk,
    "other_numbers": other_numbers,
    "other_base": other_base,
}


def main(path: Path) -> int:
    launched.end_with_launcher()
    # The launcher ends by SIGTERM those that outlive a killed one. A training notes it; the line of its result comes
    # after that training, and is to be written all the same.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    rank = int(os.environ["RANK"])
    with path.with_suffix(f".{rank}.jsonl").open("w") as results:
        for run in json.loads(path.read_text()):
            if run.get("own_group"):
                distributed.init_process_group("gloo")
            results.write(json.dumps(train(run, rank)) + "\n")
            results.flush()
            if run.get("own_group"):
                distributed.destroy_process_group()
    return 0


def train(run: Any, rank: int) -> dict[str, Any]:
    """What one training came to here."""
    run = {**run, **(run.get("rank1", {}) if rank == 1 else {})}
    bench = Bench(run["task"], resolved(Path(run["base"])), Path(run["prepared"]), Path(run["root"]))
    sent: list[list[Any]] = []
    found: dict[str, Any] = {"sent": sent}
    real_step, real_run = Loop._step, Loop.run
    real_reduce = distributed.all_reduce

    def step(loop: Loop) -> None:
        who, when, what = run.get("act", [None, None, None])
        if rank == who and loop.counters.step + 1 == when:
            ACTS[what](loop)
        real_step(loop)

    def whole(loop: Loop) -> Any:
        ending = real_run(loop)
        found["trained"] = digest({name: p.tolist() for name, p in loop.trained.items()})
        found["best"] = digest({name: t.tolist() for name, t in loop.best.items()})
        return ending

    def reduce(tensor: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        sent.append([str(tensor.dtype), tensor.numel()])
        return real_reduce(tensor, *arguments, **named)

    training_loop.Loop._step, training_loop.Loop.run = step, whole  # type: ignore[method-assign]
    distributed.all_reduce = reduce
    try:
        summary = bench.train(
            on_curve=lambda line: found.update(threads=torch.get_num_threads()), **run["training"]
        )
        found["summary"] = summary.to_json()
    except PrefixlineError as error:
        found["error"] = [type(error).__name__, str(error)]
    finally:
        training_loop.Loop._step, training_loop.Loop.run = real_step, real_run  # type: ignore[method-assign]
        distributed.all_reduce = real_reduce
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    found["lines"] = len(bench.lines)
    return found


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
