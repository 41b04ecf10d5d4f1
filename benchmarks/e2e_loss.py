"""How low the loss of a prefix on E2E gets, ours and PEFT's, each with its best learning rate out of the same sweep.

    python benchmarks/e2e_loss.py --data FOLDER --base FOLDER

FOLDER is E2E's (trainset.csv and devset.csv: mr, ref) and a small causal language model's in transformers format. Both
sides see the same sources and references at every step, so as many target tokens; both use AdamW with the
same schedule and clipping. PEFT's prefix tuning starts as it comes, from a normal distribution of standard deviation 1;
ours by our default, or as --initialisation says. Every rate is tried for --sweep-steps, and the best by the loss on training sources held out is
then trained for --steps. The development rows are scored once for each side, by one code. Prints JSON; losses are in
nats a target token.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import math
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from peft import PrefixTuningConfig, get_peft_model

from pipeline.base import base_files, base_model
from pipeline.data.encoding import Encoder
from pipeline.digest import digest
from pipeline.params import BaseModelParams, PathSource, PrefixParams, TrainingParams
from pipeline.prefix.adapter import load_adapter
from pipeline.prefix.attention import attach
from pipeline.prefix.tuning import Prefix, PrefixShape
from pipeline.train.batches import GenerationRows, epoch_steps
from pipeline.train.losses import batch_loss
from pipeline.train.plan import Plan
from pipeline.train.training import train

HELD_OUT = 60
"""Training sources that rates are chosen by."""


def main() -> None:
    """Sweep, train and score both sides."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="the folder with trainset.csv and devset.csv"
    )
    parser.add_argument("--base", type=Path, required=True, help="the base model's folder")
    parser.add_argument("--length", type=int, default=20, help="prefix positions")
    parser.add_argument("--batch-size", type=int, default=3, help="examples a step")
    parser.add_argument(
        "--references",
        type=int,
        default=3,
        help="most references of a source in one example; the others make more",
    )
    parser.add_argument("--rates", type=float, nargs="+", default=[0.03, 0.1, 0.3])
    parser.add_argument("--sweep-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=4800)
    parser.add_argument(
        "--initialisation", default="{}", help="our start, as JSON of params.yaml's prefix section"
    )
    parser.add_argument("--schedule", default="linear")
    parser.add_argument("--betas", type=float, nargs=2, default=(0.8, 0.95), help="AdamW's, of both sides")
    parser.add_argument("--warmup", type=float, default=0.06)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=("ours", "peft"), help="one side alone")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(arguments, Path(scratch))
        result: dict[str, Any] = {**vars(arguments), "data": arguments.data.name, "base": arguments.base.name}
        result["frozen"] = round(bench.dev_loss(None), 4)
        for side, fit in (("ours", bench.ours), ("peft", bench.peft)):
            if arguments.only in (None, side):
                result[side] = bench.tuned(side, fit)
    print(json.dumps(result, indent=2))


class Bench:
    """The model, the rows, and both ways to train a prefix on them."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        path = arguments.base.resolve()
        source = PathSource(path=str(path))
        _, files = base_files.find(source, "0" * 64, path, "base")
        base = base_model.resolve("base", BaseModelParams(source=source, digest=digest(files)), path)
        self.model: Any = base_model.load(base, "generation")
        self.tokenizer = base_model.tokenizer(base)
        window = base_model.window(base)
        assert window is not None, "a decoder names its window"
        self.encoder = Encoder(
            self.tokenizer,
            window=window,
            prefix_length=arguments.length,
            max_tokens=None,
        )
        examples = self.read("trainset.csv")
        held_out = set(np.random.default_rng(0).permutation(len(examples))[:HELD_OUT].tolist())
        splits = {
            "train": [
                (source, refs[start : start + arguments.references])
                for i, (source, refs) in enumerate(examples)
                if i not in held_out
                for start in range(0, len(refs), arguments.references)
            ],
            "validation": [example for i, example in enumerate(examples) if i in held_out],
        }
        saved = {name: self.encoded(split) for name, split in splits.items()}
        for name, rows in saved.items():
            rows.save_to_disk(str(folder / "prepared" / name))
        self.train_rows = saved["train"]
        self.validation = GenerationRows(saved["validation"], pad=0, model=self.model)
        self.dev = GenerationRows(self.encoded(self.read("devset.csv")), pad=0, model=self.model)

    def read(self, name: str) -> list[tuple[str, list[str]]]:
        """(source, its references), in the file's order."""
        grouped: dict[str, list[str]] = defaultdict(list)
        with (self.arguments.data / name).open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                grouped[row["mr"]].append(row["ref"])
        return list(grouped.items())

    def encoded(self, examples: list[tuple[str, list[str]]]) -> datasets.Dataset:
        """Rows as the preparation makes them."""
        sources, targets = [source for source, _ in examples], [refs for _, refs in examples]
        found = self.encoder.sources(sources, targets)
        return datasets.Dataset.from_dict(
            {
                "row_id": sources,
                "source": sources,
                "targets": targets,
                "input_ids": [one.input_ids for one in found],
                "target_ids": [one.target_ids for one in found],
            }
        )

    def tuned(self, side: str, fit: Any) -> dict[str, Any]:
        """The sweep, the best rate's training, and what came of it."""
        sweep = {}
        for rate in self.arguments.rates:
            prefix, _ = fit(rate, self.arguments.sweep_steps)
            sweep[rate] = round(self.loss(prefix, self.validation), 4)
            print(f"{side} {rate:g}: {sweep[rate]}", file=sys.stderr, flush=True)
        best = min(sweep, key=lambda rate: sweep[rate])
        began = time.process_time()
        prefix, targets = fit(best, self.arguments.steps)
        seconds = time.process_time() - began
        return {
            "sweep": sweep,
            "rate": best,
            "targets": targets,
            "cpu_seconds": round(seconds),
            "held_out": round(self.loss(prefix, self.validation), 4),
            "dev": round(self.dev_loss(prefix), 4),
        }

    def ours(self, rate: float, steps: int) -> tuple[Prefix, int]:
        """By `pipeline.train.training.train`; the prefix, and how many target tokens it saw."""
        place = self.folder / f"ours-{rate:g}-{steps}"
        train(
            self.model,
            PrefixParams.model_validate(
                {"length": self.arguments.length, **json.loads(self.arguments.initialisation)}
            ),
            self.params(rate, steps),
            "generation",
            self.folder / "prepared",
            place / "out",
            place / "checkpoints",
            tokenizer=self.tokenizer,
            labels=None,
            base_name="base",
        )
        prefix, _ = load_adapter(place / "out" / "adapter", self.model)
        return prefix, sum(self.targets(step) for step in self.steps(steps))

    def peft(self, rate: float, steps: int) -> tuple[Prefix, int]:
        """By a plain loop over PEFT's prefix tuning, its rows padded and of like length."""
        torch.manual_seed(self.arguments.seed)
        config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=self.arguments.length)
        peft: Any = get_peft_model(copy.deepcopy(self.model), config)
        trained = [parameter for parameter in peft.parameters() if parameter.requires_grad]
        params = self.params(rate, steps)
        betas = (params.adam_beta1, params.adam_beta2)
        optimiser = torch.optim.AdamW(trained, lr=rate, betas=betas, weight_decay=0.0)
        plan = Plan.of(params, len(self.train_rows))
        targets = 0
        for number, examples in enumerate(self.steps(steps), start=1):
            input_ids, attention_mask, labels = self.padded(examples)
            for group in optimiser.param_groups:
                group["lr"] = rate * plan.rate(number)
            optimiser.zero_grad()
            peft(input_ids=input_ids, attention_mask=attention_mask, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, params.max_grad_norm)
            optimiser.step()
            targets += int((labels != -100).sum())
        vectors = peft.prompt_encoder.default.embedding.weight.detach().clone()
        shape = PrefixShape.of_model(self.model)
        prefix = Prefix(shape, self.arguments.length)
        prefix.init_from(vectors)
        return prefix, targets

    def params(self, rate: float, steps: int) -> TrainingParams:
        """The same for both sides."""
        arguments = self.arguments
        epoch = math.ceil(len(self.train_rows) / arguments.batch_size)
        return TrainingParams(
            learning_rate=rate, batch_size=arguments.batch_size, epochs=math.ceil(steps / epoch), max_steps=steps,
            schedule=arguments.schedule, warmup=arguments.warmup, patience=None, seed=arguments.seed,
            adam_beta1=arguments.betas[0], adam_beta2=arguments.betas[1],
            threads=arguments.threads,
        )  # fmt: skip

    def steps(self, count: int) -> list[Any]:
        """The examples of every step, as `pipeline.train.training_loop` takes them."""
        rows = GenerationRows(self.train_rows, pad=0)
        steps: list[Any] = []
        epoch = 0
        while len(steps) < count:
            steps += epoch_steps(
                rows.lengths, self.arguments.batch_size, seed=self.arguments.seed, epoch=epoch
            )
            epoch += 1
        return steps[:count]

    def targets(self, examples: Any) -> int:
        """Target tokens of these examples."""
        return sum(len(ids) for i in examples for ids in self.train_rows[int(i)]["target_ids"])

    def padded(self, examples: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Input ids, mask and labels of a row per reference."""
        rows = [self.train_rows[int(i)] for i in examples]
        pairs = [(row["input_ids"], target) for row in rows for target in row["target_ids"]]
        width = max(len(source) + len(target) for source, target in pairs)

        def filled(values: list[list[int]], with_what: int) -> torch.Tensor:
            return torch.tensor([row + [with_what] * (width - len(row)) for row in values])

        return (
            filled([source + target for source, target in pairs], 0),
            filled([[1] * (len(source) + len(target)) for source, target in pairs], 0),
            filled([[-100] * len(source) + target for source, target in pairs], -100),
        )

    def dev_loss(self, prefix: Prefix | None) -> float:
        """On all development rows."""
        return self.loss(prefix, self.dev)

    @torch.no_grad()
    def loss(self, prefix: Prefix | None, rows: GenerationRows) -> float:
        """Nats a target token."""
        attachment = None if prefix is None else attach(self.model, prefix)
        order = np.argsort(rows.lengths, kind="stable")
        total, targets = 0.0, 0
        for start in range(0, len(order), 16):
            for batch in rows.batches(order[start : start + 16], 1):
                piece = batch_loss(self.model, batch)
                total, targets = total + piece.total.item(), targets + piece.targets
        if attachment is not None:
            attachment.detach()
        return total / targets


if __name__ == "__main__":
    main()
