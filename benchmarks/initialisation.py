"""Where a prefix should start: every start with its best learning rate, on the same rows.

    python benchmarks/initialisation.py banking77 --data FOLDER     # train.csv: text, category
    python benchmarks/initialisation.py e2e --data FOLDER --base FOLDER     # trainset.csv: mr, ref

Trains by `pipeline.train.training.train` on --rows of the training file, prepared as in a retraining, from random
vectors of several scales, from texts made of labels, words and examples, and from the reparameterisation MLP. Every
start is tried with every rate and one seed; its best rate, by the validation loss, is then trained with the other
seeds. Test rows are not looked at. `--base` is a model's folder in transformers format; banking77 uses all-MiniLM-L6-v2 from its
package. Prints JSON; losses are in nats, per row for banking77 and per target token for E2E.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from pipeline.base import base_files, base_model
from pipeline.data.dataset import prepare
from pipeline.digest import digest
from pipeline.params import BaseModelParams, DataParams, PathSource, PrefixParams, TrainingParams
from pipeline.params_file import load_params
from pipeline.train.training import train

ROOT = Path(__file__).resolve().parent.parent
SETS: dict[str, dict[str, Any]] = {
    "banking77": {"file": "train.csv", "task": "classification", "columns": {"label": "category"}},
    "e2e": {"file": "trainset.csv", "task": "generation", "columns": {"source": "mr", "target": "ref"}},
}
RANDOM = {
    f"random {scale:g}": {"initialisation": "random", "random_scale": scale}
    for scale in (0.02, 0.2, 0.5, 1.0)
}
TEXT: dict[str, Any] = {
    f"text of {of}": {"initialisation": "text", "text_from": of} for of in ("labels", "words", "examples")
}
MLP: dict[str, Any] = {
    "MLP, random 0.2": {"initialisation": "random", "random_scale": 0.2, "projection": 256},
    "MLP, text of words": {"initialisation": "text", "text_from": "words", "projection": 256},
}


def main() -> None:
    """Run all trials and print what came of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=SETS)
    parser.add_argument("--data", type=Path, required=True, help="the data set's folder")
    parser.add_argument("--base", type=Path, help="the base model's folder; default: all-MiniLM-L6-v2")
    parser.add_argument("--rows", type=int, default=3000, help="rows of the file to prepare, drawn at random")
    parser.add_argument("--length", type=int, default=20, help="prefix positions")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.01, 0.03, 0.1])
    parser.add_argument("--mlp-rates", type=float, nargs="+", default=[0.0003, 0.001, 0.003])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--starts", nargs="+", help="only these")
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    torch.set_num_threads(arguments.threads)
    starts = {**RANDOM, **TEXT, **MLP}
    if arguments.name == "e2e":
        del starts["text of labels"]
    if arguments.starts:
        starts = {name: starts[name] for name in arguments.starts}
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(arguments, Path(scratch))
        results = {name: bench.tuned(name, start) for name, start in starts.items()}
    settings = {**vars(arguments), "data": arguments.data.name, "base": bench.base.name}
    print(json.dumps({**settings, "prepared": bench.rows, "starts": results}, indent=2))


class Bench:
    """The base, the prepared rows, and one training at a time."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        chosen = SETS[arguments.name]
        self.task: Any = chosen["task"]
        self.base = resolved(arguments.base)
        raw = folder / "rows.csv"
        draw(arguments.data / chosen["file"], raw, arguments.rows)
        self.tokenizer = base_model.tokenizer(self.base)
        summary = prepare(
            raw, DataParams(path="rows.csv", **chosen["columns"]), self.task, tokenizer=self.tokenizer,
            window=base_model.window(self.base), prefix_length=arguments.length, out=folder / "prepared",
        )  # fmt: skip
        self.labels, self.rows = summary.labels, dict(summary.rows)

    def tuned(self, name: str, start: dict[str, Any]) -> dict[str, Any]:
        """The sweep over rates, and the best one's loss and accuracy over the seeds."""
        rates = self.arguments.mlp_rates if "projection" in start else self.arguments.rates
        sweep = {rate: self.trained(name, start, rate, 0) for rate in rates}
        best = min(sweep, key=lambda rate: sweep[rate][0])
        found = [sweep[best], *(self.trained(name, start, best, s) for s in range(1, self.arguments.seeds))]
        return {
            "sweep": {rate: round(loss, 4) for rate, (loss, _) in sweep.items()},
            "rate": best,
            "loss": spread([loss for loss, _ in found]),
            "accuracy": spread([accuracy for _, accuracy in found]),
        }

    def trained(self, name: str, start: dict[str, Any], rate: float, seed: int) -> tuple[float, float]:
        """Validation loss and accuracy at the last step."""
        began = time.process_time()
        arguments = self.arguments
        model = base_model.load(self.base, self.task, labels=self.labels, seed=seed)
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            summary = train(
                model,
                PrefixParams.model_validate({"length": arguments.length, **start}),
                TrainingParams(
                    learning_rate=rate, batch_size=arguments.batch_size, epochs=1000, max_steps=arguments.steps,
                    seed=seed, threads=arguments.threads, patience=None,
                ),
                self.task,
                self.folder / "prepared",
                Path(place) / "out",
                Path(place) / "checkpoints",
                tokenizer=self.tokenizer,
                labels=self.labels,
                base_name=self.base.name,
            )  # fmt: skip
        loss, accuracy = summary.best_validation_loss, summary.best_validation_accuracy
        seconds = time.process_time() - began
        print(
            f"{name}, {rate:g}, seed {seed}: {loss:.4f} {accuracy:.4f} ({seconds:.0f} s)",
            file=sys.stderr,
            flush=True,
        )
        return loss, accuracy


def resolved(folder: Path | None) -> base_model.ResolvedBase:
    """The base in `folder`, or all-MiniLM-L6-v2."""
    if folder is None:
        params = load_params(ROOT / "params.yaml").base_models["minilm"]
        return base_model.resolve("minilm", params, ROOT)
    path = folder.resolve()
    _, files = base_files.find(PathSource(path=str(path)), "0" * 64, path, "base")
    params = BaseModelParams(source=PathSource(path=str(path)), digest=digest(files))
    return base_model.resolve(path.name, params, path)


def draw(source: Path, target: Path, count: int) -> None:
    """A CSV with `count` of the rows of `source`, in its order."""
    with source.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    chosen = sorted(np.random.default_rng(0).permutation(len(rows))[:count].tolist())
    with target.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *(rows[i] for i in chosen)])


def spread(figures: list[float]) -> list[float]:
    """Smallest, median, largest."""
    return [round(f, 4) for f in (min(figures), statistics.median(figures), max(figures))]


if __name__ == "__main__":
    main()
