"""Kill a training at random moments, resume it, and compare what it ends with: `python -m benchmarks.kills --data FOLDER`.

    python -m benchmarks.kills --data FOLDER [--kills 20] [--steps 12] [--checkpoint-seconds 0] [--seed 0]

One training runs to its end undisturbed. Then, `--kills` times, another one is begun in a folder of its own, ended by
SIGKILL after a time drawn evenly from what the first one took (so in its start, a step, a validation, or while it saves),
and begun again. Every process is a fork of this one, which has imported the libraries and computes nothing.

The base is a random Llama of 6 layers of 384 with 32,000 words, the data that of `benchmarks/training.py`. Prints JSON: the
adapter's SHA-256 of every training, and for each kill when it came, the steps done and checkpoints kept by then, and whether it
left a half-written one. Exits with 1 unless all digests are equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline.environment import quiet_environment

os.environ.update(quiet_environment())

import datasets
import transformers.models.llama.modeling_llama  # noqa: F401  (imported here, so not after every fork)

from benchmarks.training import base_model, encoded
from pipeline.digest import sha256_file
from pipeline.params import PrefixParams, TrainingParams
from pipeline.train import training


def main() -> None:
    """Run the undisturbed training, then the killed ones; print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--sources", type=int, default=4, help="in a step, with three references each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpoint-seconds", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        finished(forked(lambda: prepare(arguments.data, folder, arguments.steps * arguments.sources)))
        began = time.monotonic()
        finished(forked(lambda: train(folder, folder / "whole", arguments)))
        took = time.monotonic() - began
        whole = adapter(folder / "whole")
        kills = []
        for number in range(arguments.kills):
            root = folder / f"killed{number}"
            print(f"kill {number + 1} of {arguments.kills}", file=sys.stderr)
            child = forked(lambda root=root: train(folder, root, arguments))
            moment = draw.uniform(0, took)
            time.sleep(moment)
            os.kill(child, signal.SIGKILL)  # one that has ended waits to be asked for its status
            _, status = os.waitpid(child, 0)
            kill = {"after_seconds": round(moment, 2), "killed": os.WIFSIGNALED(status), **left(root)}
            finished(forked(lambda root=root: train(folder, root, arguments)))
            kills.append({**kill, "adapter": adapter(root)})
    equal = sum(kill["adapter"] == whole for kill in kills)
    result = {
        "shape": "llama", "steps": arguments.steps, "threads": arguments.threads, "seconds": round(took, 1),
        "checkpoint_seconds": arguments.checkpoint_seconds, "whole": whole, "kills": kills,
        "killed_before_the_end": sum(kill["killed"] for kill in kills), "equal_to_whole": equal,
    }  # fmt: skip
    print(json.dumps(result, indent=2))
    sys.exit(equal != len(kills))


def forked(work: Any) -> int:
    """Do `work` in a fork of this process; its process id."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)  # Ctrl-C is for this process's parent
        try:
            work()
        except BaseException as error:  # noqa: BLE001  (a fork must not go on as its parent)
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return child


def finished(child: int) -> None:
    """Wait for a fork, which must end well."""
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit(f"a process ended with status {os.waitstatus_to_exitcode(status)}")


def prepare(data: Path, folder: Path, count: int) -> None:
    """Rows for training and, a quarter as many, for validation."""
    datasets.disable_progress_bars()
    sources, references = encoded(data, 3)
    for split, start, end in (("train", 0, count), ("validation", count, count + count // 4)):
        rows = [
            {"row_id": hashlib.sha256(str(i).encode()).hexdigest(), "input_ids": sources[i], "target_ids": references[i]}
            for i in range(start, end)
        ]  # fmt: skip
        datasets.Dataset.from_list(rows).save_to_disk(str(folder / "prepared" / split))


def train(folder: Path, root: Path, arguments: argparse.Namespace) -> None:
    """The training, from its start or from its newest checkpoint."""
    training.train(
        base_model("llama"),
        PrefixParams(length=10, initialisation="random"),
        TrainingParams(
            learning_rate=0.01,
            batch_size=arguments.sources,
            epochs=1,
            validations_per_epoch=3,
            checkpoint_seconds=arguments.checkpoint_seconds,
            threads=arguments.threads,
        ),
        "generation",
        folder / "prepared",
        root / "out",
        root / "checkpoints",
        tokenizer=None,  # a start from noise reads no text
        labels=None,
        base_name="llama",
    )


def adapter(root: Path) -> str:
    """SHA-256 of what was trained."""
    return sha256_file(root / "out" / "adapter" / "adapter_model.safetensors")


def left(root: Path) -> dict[str, Any]:
    """What a kill left: steps in the curve, checkpoints, half-written ones, and whether there was a result."""
    folder = root / "checkpoints"
    curve = folder / "curves.jsonl"
    lines = curve.read_text().splitlines() if curve.exists() else []
    return {
        "steps_done": sum('"kind": "step"' in line for line in lines),
        "checkpoints": sorted(int(path.name.split("-")[1]) for path in folder.glob("step-*")),
        "half_written": len(list(folder.glob(".*"))),
        "finished": (folder / "finished").exists(),
    }


if __name__ == "__main__":
    main()
