"""Training throughput and peak memory: ours, PEFT's prefix tuning under transformers' Trainer, and the floor.

    python benchmarks/training.py --data FOLDER [--shape llama|gpt2] [--length 10] [--steps 20] [--pairs 5]

`--data` holds E2E's trainset.csv (mr, ref) or WebNLG's train.jsonl (source, references); three references of each
source that has them are used. The base is a random model with 32,000 words, the text is split by a byte-level BPE
trained on it. Each measurement is a process of its own, and those that are compared run in turns:

    ours             packed rows, shared sources, the head at target positions (what `prefixline retrain` does)
    trainer          PEFT + Trainer as they come: examples in random order
    trainer_grouped  PEFT + Trainer at their best: the same steps as ours, whose examples are of like length
    floor            the base's own forward and backward pass over exactly the tokens that ours reads, no prefix

A step is 8 sources with 3 references each: 24 rows to the Trainer. Every side does the same optimiser's steps (AdamW, the same
rate, clipping at 1), and the losses of `ours` and `trainer_grouped` must agree to 1e-4 at each step, or the benchmark
fails. Prints JSON: targets a second, peak memory, and the ratios of each pair, smallest / median / largest.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SOURCES, REFERENCES, VOCABULARY, RATE = 8, 3, 32_000, 1e-2
SIDES = ("ours", "trainer", "trainer_grouped", "floor")


def main() -> None:
    """Measure every side in turns, `--pairs` times, and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--shape", choices=("llama", "gpt2"), default="llama")
    parser.add_argument("--length", type=int, default=10, help="prefix positions")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments)))
        return
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for pair in range(arguments.pairs):
        for side in SIDES:
            print(f"pair {pair + 1} of {arguments.pairs}: {side}", file=sys.stderr)
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            runs[side].append(json.loads(done.stdout.splitlines()[-1]))
        mine, theirs = (runs[side][-1]["losses"] for side in ("ours", "trainer_grouped"))
        furthest = max(abs(a - b) for a, b in zip(mine, theirs, strict=True))
        if furthest > 1e-4:
            sys.exit(f"the losses differ by {furthest:g}: these are not the same trainings")
    settings = {key: getattr(arguments, key) for key in ("shape", "length", "steps", "threads")}
    result: dict[str, Any] = {**settings, "data": arguments.data.name, "largest_loss_difference": furthest}
    for side in SIDES:
        rates = [run["targets"] / run["seconds"] for run in runs[side]]
        result[side] = {
            "targets_per_second": spread(rates),
            "peak_mb": spread([run["peak_mb"] for run in runs[side]]),
        }
        if side != "ours":
            pairs = list(zip(runs["ours"], runs[side], strict=True))
            result[side]["ours_is_faster_by"] = spread(
                [
                    other["seconds"] / other["targets"] * mine["targets"] / mine["seconds"]
                    for mine, other in pairs
                ]
            )
            result[side]["memory_of_ours"] = spread(
                [mine["peak_mb"] / other["peak_mb"] for mine, other in pairs]
            )
    print(json.dumps(result, indent=2))


def spread(figures: list[float]) -> list[float]:
    """Smallest, median, largest."""
    return [round(f, 3) for f in (min(figures), statistics.median(figures), max(figures))]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """One side in this process: seconds, targets and losses of `--steps` steps after one that warms up."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    sources, references = encoded(arguments.data)
    model = base_model(arguments.shape)
    side = ours if arguments.side in ("ours", "floor") else trainer
    seconds, targets, losses = side(model, sources, references, arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "targets": targets, "losses": losses, "peak_mb": round(peak, 1)}


def read(data: Path) -> Iterator[tuple[str, list[str]]]:
    """(source, references) of the data set in the folder `data`."""
    if (data / "trainset.csv").exists():
        grouped: dict[str, list[str]] = defaultdict(list)
        with (data / "trainset.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                grouped[row["mr"]].append(row["ref"])
        yield from grouped.items()
        return
    with (data / "train.jsonl").open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            source = row["source"] if isinstance(row["source"], str) else " ".join(map(str, row["source"]))
            yield source, row["references"]


def encoded(data: Path) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Token ids of the sources, and of three references each."""
    from tokenizers import ByteLevelBPETokenizer

    examples = [(source, refs[:REFERENCES]) for source, refs in read(data) if len(refs) >= REFERENCES]
    tokenizer = ByteLevelBPETokenizer()
    texts = (text for source, refs in examples for text in (source, *refs))
    tokenizer.train_from_iterator(texts, vocab_size=VOCABULARY - 2, show_progress=False)
    end = VOCABULARY - 1
    return (
        [tokenizer.encode(source).ids for source, _ in examples],
        [[[*tokenizer.encode(" " + ref).ids, end] for ref in refs] for _, refs in examples],
    )


def base_model(shape: str) -> Any:
    """A random base in the shape of a small Llama (6 layers of 384), or of GPT-2 small."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if shape == "gpt2":
        none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)  # Trainer would draw its own
        model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=1024, **none))
    else:
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=384,
            intermediate_size=1024,
            num_hidden_layers=6,
            num_attention_heads=6,
            max_position_embeddings=1024,
        )
        model = LlamaForCausalLM(config)
    return model.eval().requires_grad_(False)


def start(model: Any, length: int) -> Any:
    """The same prefix for every side."""
    import torch

    from pipeline.prefix.tuning import Prefix, PrefixShape

    prefix = Prefix(PrefixShape.of_model(model), length)
    prefix.init_random(0.02, torch.Generator().manual_seed(1))
    return prefix


def steps_of(lengths: Any, count: int) -> list[Any]:
    """`count` + 1 steps of 8 sources of like length, as `prefixline retrain` makes them."""
    from pipeline.train.batches import epoch_steps

    return epoch_steps(lengths, SOURCES, seed=0, epoch=0)[: count + 1]


def ours(
    model: Any, sources: list[Any], references: list[Any], arguments: argparse.Namespace
) -> tuple[float, int, list[float]]:
    """Our engine, or the floor under it."""
    import datasets
    import torch

    from pipeline.prefix.attention import attach
    from pipeline.train.batches import GenerationRows
    from pipeline.train.losses import batch_loss

    rows = GenerationRows(
        datasets.Dataset.from_dict({"input_ids": sources, "target_ids": references}), pad=0, model=model
    )
    prefix = start(model, arguments.length)
    floor = arguments.side == "floor"
    optimiser = torch.optim.AdamW(prefix.parameters(), lr=RATE, weight_decay=0.0)
    if floor:
        # The pass has to go back to the first layer, as it does for a prefix.
        model.get_input_embeddings().register_forward_hook(lambda _, __, output: output.requires_grad_())
    else:
        attach(model, prefix)
    seconds, targets, losses = 0.0, 0, []
    for step, examples in enumerate(steps_of(rows.lengths, arguments.steps)):
        began = time.monotonic()
        (batch,) = rows.batches(examples, 1)
        optimiser.zero_grad()
        loss = batch_loss(model, batch).total / len(batch.targets)
        loss.backward()
        if not floor:
            torch.nn.utils.clip_grad_norm_(prefix.parameters(), 1.0)
            optimiser.step()
        losses.append(loss.item())
        if step:
            seconds += time.monotonic() - began
            targets += len(batch.targets)
    return seconds, targets, losses[1:]


def trainer(
    model: Any, sources: list[Any], references: list[Any], arguments: argparse.Namespace
) -> tuple[float, int, list[float]]:
    """PEFT's prefix tuning under transformers' Trainer."""
    import numpy as np
    import torch
    from peft import PrefixTuningConfig, get_peft_model
    from transformers import Trainer, TrainerCallback, TrainingArguments

    lengths = np.array(
        [len(source) + max(map(len, refs)) - 1 for source, refs in zip(sources, references, strict=True)]
    )
    prefix = start(model, arguments.length)
    if arguments.side == "trainer":
        random = np.random.default_rng(0).permutation(len(sources))[: (arguments.steps + 1) * SOURCES]
        order = np.split(random, arguments.steps + 1)
    else:
        order = steps_of(lengths, arguments.steps)
    rows = [
        {
            "input_ids": sources[i] + ref,
            "attention_mask": [1] * (len(sources[i]) + len(ref)),
            "labels": [-100] * len(sources[i]) + ref,
        }
        for step in order
        for i in step
        for ref in references[i]
    ]
    peft = get_peft_model(
        model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=arguments.length)
    )
    with torch.no_grad():
        peft.prompt_encoder.default.embedding.weight.copy_(prefix.key_values())

    class Clock(TrainerCallback):  # type: ignore[misc]
        began = 0.0
        ended = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.ended = time.monotonic()
            if state.global_step == 1:
                self.began = self.ended

    class InOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    def collate(features: list[dict[str, Any]]) -> dict[str, Any]:
        width = max(len(row["input_ids"]) for row in features)
        return {
            key: torch.tensor([row[key] + [value] * (width - len(row[key])) for row in features])
            for key, value in {"input_ids": 0, "attention_mask": 0, "labels": -100}.items()
        }

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            per_device_train_batch_size=SOURCES * REFERENCES,
            max_steps=arguments.steps + 1,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            dataloader_num_workers=0,
        )
        run = InOrder(peft, settings, train_dataset=rows, data_collator=collate, callbacks=[clock])
        run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    first = SOURCES * REFERENCES
    targets = sum(sum(label != -100 for label in row["labels"]) for row in rows[first:])
    return clock.ended - clock.began, targets, losses[1:]


if __name__ == "__main__":
    main()
