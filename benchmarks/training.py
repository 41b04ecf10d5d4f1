"""Training throughput and peak memory: ours, PEFT's prefix tuning under transformers' Trainer, and the floor.

    python benchmarks/training.py --data FOLDER [--shape llama|gpt2] [--length 10] [--steps 20] [--pairs 5]
                                  [--references 3] [--dtype float32|bfloat16] [--pieces 1] [--recompute]

`--data` holds E2E's trainset.csv (mr, ref) or WebNLG's train.jsonl (source, references); `--references` of each
source that has so many are used. The base is a random model with 32,000 words, the text is split by a byte-level BPE
trained on it. Each measurement is a process of its own, and those that are compared run in turns:

    ours             packed rows, shared sources, the head at target positions (what `prefixline retrain` does)
    trainer          PEFT + Trainer as they come: examples in random order
    trainer_grouped  PEFT + Trainer at their best: the same steps as ours, whose examples are of like length
    floor            the base's own forward and backward pass over exactly the tokens that ours reads, no prefix

A step is 24 rows to the Trainer: 8 sources with 3 references each, or 3 with 8. Every side does the same optimiser's
steps (AdamW, the same rate, clipping at 1), and the losses of `ours` and `trainer_grouped` must agree to 1e-4 at each
step in float32, or the benchmark fails. `--dtype` is for all sides; `--pieces` (training.gradient_accumulation) and
`--recompute` (training.gradient_checkpointing) are for ours alone. Threads that wait sleep, on all sides.

Prints JSON: targets a second of the clock and of processor time, peak memory of the process and what of it came on top of
a process that has everything imported and its model built, and the ratios of each pair, smallest / median / largest.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
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

ROWS, VOCABULARY, RATE = 24, 32_000, 1e-2
SIDES = ("ours", "trainer", "trainer_grouped", "floor")


def main() -> None:
    """Measure every side in turns, `--pairs` times, and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--shape", choices=("llama", "gpt2"), default="llama")
    parser.add_argument("--length", type=int, default=10, help="prefix positions")
    parser.add_argument("--references", type=int, default=3, help="of each source")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--pieces", type=int, default=1, help="ours: batches in a step")
    parser.add_argument("--recompute", action="store_true", help="ours: gradient checkpointing")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--prepared", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "steps.json"
        prepared.write_text(json.dumps(prepare(arguments)), encoding="utf-8")
        runs, furthest = run_in_turns(arguments, prepared)
    keys = ("shape", "length", "references", "dtype", "pieces", "recompute", "steps", "pairs", "threads")
    result: dict[str, Any] = {key: getattr(arguments, key) for key in keys}
    result |= {"data": arguments.data.name, "largest_loss_difference": furthest}
    for side in SIDES:
        result[side] = {
            "targets_per_second": spread([run["targets"] / run["seconds"] for run in runs[side]]),
            "targets_per_cpu_second": spread([run["targets"] / run["cpu_seconds"] for run in runs[side]]),
            "peak_mb": spread([run["peak_mb"] for run in runs[side]]),
            "of_that_in_training_mb": spread([run["training_mb"] for run in runs[side]]),
        }
        if side != "ours":
            pairs = list(zip(runs["ours"], runs[side], strict=True))
            result[side] |= {
                "ours_is_faster_by": spread([slower(mine, other, "seconds") for mine, other in pairs]),
                "in_cpu_time": spread([slower(mine, other, "cpu_seconds") for mine, other in pairs]),
                "memory_of_ours": spread([mine["peak_mb"] / other["peak_mb"] for mine, other in pairs]),
                "memory_in_training_of_ours": spread(
                    [mine["training_mb"] / other["training_mb"] for mine, other in pairs]
                ),
            }
    print(json.dumps(result, indent=2))


def run_in_turns(
    arguments: argparse.Namespace, prepared: Path
) -> tuple[dict[str, list[dict[str, Any]]], float]:
    """The measurements of every side, one of each at a time; and the largest difference of a loss."""
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    furthest = 0.0
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(arguments.threads)}
    for pair in range(arguments.pairs):
        for side in SIDES:
            print(f"pair {pair + 1} of {arguments.pairs}: {side}", file=sys.stderr)
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--prepared", str(prepared)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
            runs[side].append(json.loads(done.stdout.splitlines()[-1]))
        mine, theirs = (runs[side][-1]["losses"] for side in ("ours", "trainer_grouped"))
        furthest = max(furthest, *(abs(a - b) for a, b in zip(mine, theirs, strict=True)))
        if furthest > 1e-4 and arguments.dtype == "float32":
            sys.exit(f"the losses differ by {furthest:g}: these are not the same trainings")
    return runs, furthest


def slower(mine: dict[str, Any], other: dict[str, Any], clock: str) -> float:
    """How many times as long `other` takes for a target."""
    return float(other[clock] / other["targets"] * mine["targets"] / mine[clock])


def spread(figures: list[float]) -> list[float]:
    """Smallest, median, largest."""
    return [round(f, 3) for f in (min(figures), statistics.median(figures), max(figures))]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """One side in this process: seconds, targets and losses of `--steps` steps after one that warms up."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    orders = json.loads(arguments.prepared.read_text(encoding="utf-8"))
    steps = orders["random" if arguments.side == "trainer" else "grouped"]
    del orders
    side = ours if arguments.side in ("ours", "floor") else trainer
    clocks, targets, losses, before = side(base_model(arguments.shape), steps, arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        **clocks,
        "targets": targets,
        "losses": losses,
        "peak_mb": round(peak, 1),
        "training_mb": round(peak - before, 1),
    }


def resident_mb() -> float:
    """What this process holds now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


def prepare(arguments: argparse.Namespace) -> dict[str, list[Any]]:
    """`--steps` + 1 steps of token ids, [source, references] each: of like lengths as in a retraining, and random."""
    import numpy as np

    from pipeline.train.batches import epoch_steps

    sources, references = encoded(arguments.data, arguments.references)
    lengths = np.array(
        [len(s) + max(map(len, refs)) - 1 for s, refs in zip(sources, references, strict=True)]
    )
    count, size = arguments.steps + 1, ROWS // arguments.references
    grouped = epoch_steps(lengths, size, seed=0, epoch=0)[:count]
    random = np.random.default_rng(0).permutation(len(sources))[: count * size].reshape(count, size)
    return {
        name: [[[sources[i], references[i]] for i in step] for step in order]
        for name, order in (("grouped", grouped), ("random", random))
    }


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


def encoded(data: Path, count: int) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Token ids of the sources, and of `count` references each."""
    from tokenizers import ByteLevelBPETokenizer

    examples = [(source, refs[:count]) for source, refs in read(data) if len(refs) >= count]
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


def ours(
    model: Any, steps: list[Any], arguments: argparse.Namespace
) -> tuple[dict[str, float], int, list[float], float]:
    """Our engine, or the floor under it."""
    import datasets
    import numpy as np
    import torch

    from pipeline.prefix.attention import attach
    from pipeline.prefix.lean import lean
    from pipeline.train.batches import GenerationRows
    from pipeline.train.losses import batch_loss

    examples = [example for step in steps for example in step]
    columns = {"input_ids": [s for s, _ in examples], "target_ids": [refs for _, refs in examples]}
    rows = GenerationRows(datasets.Dataset.from_dict(columns), pad=0, model=model)
    prefix = start(model, arguments.length)
    floor = arguments.side == "floor"
    optimiser = torch.optim.AdamW(prefix.parameters(), lr=RATE, weight_decay=0.0)
    if floor:
        # The pass has to go back to the first layer, as it does for a prefix.
        model.get_input_embeddings().register_forward_hook(lambda _, __, output: output.requires_grad_())
    else:
        attach(model, prefix)
    began, cpu_began, targets, losses = 0.0, 0.0, 0, []
    before = resident_mb()
    with lean(model, recompute=arguments.recompute):
        for step in range(len(steps)):
            size = len(steps[0])
            batches = rows.batches(np.arange(step * size, (step + 1) * size), arguments.pieces)
            predicted = sum(len(batch.targets) for batch in batches)
            optimiser.zero_grad()
            loss = 0.0
            for batch in batches:
                piece = batch_loss(model, batch, arguments.dtype).total / predicted
                piece.backward()
                loss += piece.item()
            if not floor:
                torch.nn.utils.clip_grad_norm_(prefix.parameters(), 1.0)
                optimiser.step()
            if step:
                targets += predicted
                losses.append(loss)
            else:
                began, cpu_began = time.monotonic(), time.process_time()
    clocks = {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu_began}
    return clocks, targets, losses, before


def trainer(
    model: Any, steps: list[Any], arguments: argparse.Namespace
) -> tuple[dict[str, float], int, list[float], float]:
    """PEFT's prefix tuning under transformers' Trainer."""
    import torch
    from peft import PrefixTuningConfig, get_peft_model
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from pipeline.prefix.tuning import flatten

    prefix = start(model, arguments.length)
    rows = [
        {
            "input_ids": source + ref,
            "attention_mask": [1] * (len(source) + len(ref)),
            "labels": [-100] * len(source) + ref,
        }
        for step in steps
        for source, references in step
        for ref in references
    ]
    peft = get_peft_model(
        model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=arguments.length)
    )
    with torch.no_grad():
        peft.prompt_encoder.default.embedding.weight.copy_(flatten(prefix.key_values()))

    class Clock(TrainerCallback):  # type: ignore[misc]
        before = 0.0
        began = (0.0, 0.0)
        ended = (0.0, 0.0)

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.before = resident_mb()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.ended = time.monotonic(), time.process_time()
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
            per_device_train_batch_size=ROWS,
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
            bf16=arguments.dtype == "bfloat16",
            dataloader_num_workers=0,
        )
        run = InOrder(peft, settings, train_dataset=rows, data_collator=collate, callbacks=[clock])
        run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    targets = sum(sum(label != -100 for label in row["labels"]) for row in rows[ROWS:])
    seconds, cpu_seconds = (end - begin for begin, end in zip(clock.began, clock.ended, strict=True))
    return {"seconds": seconds, "cpu_seconds": cpu_seconds}, targets, losses[1:], clock.before


if __name__ == "__main__":
    main()
