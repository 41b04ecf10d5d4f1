"""Training throughput and peak memory: ours, PEFT's prefix tuning under transformers' Trainer, and the floor.

    python benchmarks/training.py --data FOLDER [--shape llama|gpt2] [--length 10] [--steps 20] [--pairs 5]
                                  [--references 3] [--dtype float32|bfloat16] [--pieces 1] [--recompute] [--profile]

`--data` holds E2E's trainset.csv (mr, ref) or WebNLG's train.jsonl (source, references); `--references` of each
source that has so many are used. The base is a random model with 32,000 words, the text is split by a byte-level BPE
trained on it. Each side is a process of its own; they run in turns, `--steps` steps at a time, while the others wait:

    ours             packed rows, shared sources, the head at target positions (what `prefixline retrain` does)
    trainer          PEFT + Trainer as they come: examples in random order
    trainer_grouped  PEFT + Trainer at their best: the same steps as ours, whose examples are of like length
    floor            the base's own forward and backward pass over exactly the tokens that ours reads, no prefix

A step is 24 rows to the Trainer: 8 sources with 3 references each, or 3 with 8. Every side does the same optimiser's
steps (AdamW, the same rate, clipping at 1), and the losses of `ours` and `trainer_grouped` must agree to 1e-4 at each
step in float32, or the benchmark fails. `--dtype` is for all sides; `--pieces` (training.gradient_accumulation) and
`--recompute` (training.gradient_checkpointing) are for ours alone. Threads that wait sleep, on all sides.

Prints JSON: targets a second of the clock and of processor time, and the ratios of each pair, smallest / median /
largest; peak memory of each process over all its steps, and what of it came on top of a process that has everything
imported and its model built. `--profile` does one more step on each side, under torch's profiler: the floating-point
operations of its matrix products, and where its processor time goes, operator by operator; memory is then the profiler's too.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROWS, VOCABULARY, RATE = 24, 32_000, 1e-2
REPLY = "reply: "
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
    parser.add_argument("--profile", action="store_true", help="one more step on each side, profiled")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--prepared", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(REPLY + json.dumps(measure(arguments)), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "steps.json"
        prepared.write_text(json.dumps(prepare(arguments)), encoding="utf-8")
        runs, furthest = run_in_turns(arguments, prepared)
    keys = ("shape", "length", "references", "dtype", "pieces", "recompute", "steps", "pairs", "threads")
    result: dict[str, Any] = {key: getattr(arguments, key) for key in keys}
    result |= {"data": arguments.data.name, "largest_loss_difference": furthest}
    mine = runs["ours"]
    for side, run in runs.items():
        result[side] = {
            "targets_per_second": spread([targets / seconds for targets, seconds, _ in run.blocks]),
            "targets_per_cpu_second": spread([targets / seconds for targets, _, seconds in run.blocks]),
            "peak_mb": run.peak_mb,
            "in_training_mb": run.training_mb,
        }
        if side != "ours":
            pairs = list(zip(run.blocks, mine.blocks, strict=True))
            result[side] |= {
                name: spread([(b[clock] / b[0]) / (a[clock] / a[0]) for b, a in pairs])
                for name, clock in (("ours_is_faster_by", 1), ("in_cpu_time", 2))
            }
            result[side]["memory_of_ours"] = round(mine.peak_mb / run.peak_mb, 3)
            result[side]["memory_in_training_of_ours"] = round(mine.training_mb / run.training_mb, 3)
        if run.profile:
            result[side]["profile"] = run.profile
    print(json.dumps(result, indent=2))


@dataclass
class Run:
    """A side's process, and what it has done.

    Attributes:
        targets: of each step.
        blocks: (targets, seconds, processor seconds) of each turn.
        losses: of each step after the first, which warms up.
    """

    process: subprocess.Popen[str]
    targets: list[int]
    blocks: list[tuple[int, float, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak_mb: float = 0.0
    training_mb: float = 0.0
    profile: dict[str, Any] = field(default_factory=dict)

    def turn(self, steps: int) -> None:
        """Let the process do its next `steps` steps."""
        assert self.process.stdin is not None
        print("go", file=self.process.stdin, flush=True)
        done = self.reply()
        first = 1 + steps * len(self.blocks)
        predicted = sum(self.targets[first : first + steps])
        self.blocks.append((predicted, done["seconds"], done["cpu_seconds"]))

    def reply(self) -> dict[str, Any]:
        """The next line that is meant for us; the Trainer writes others."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(REPLY):
                answer: dict[str, Any] = json.loads(line.removeprefix(REPLY))
                return answer
        sys.exit(f"a side ended with {self.process.wait()}")


def run_in_turns(arguments: argparse.Namespace, prepared: Path) -> tuple[dict[str, Run], float]:
    """Every side, one turn of each at a time; and the largest difference of a loss."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(arguments.threads)}
    orders = json.loads(prepared.read_text(encoding="utf-8"))
    runs: dict[str, Run] = {}
    for side in SIDES:
        print(f"{side} starts", file=sys.stderr)
        command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--prepared", str(prepared)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        runs[side] = Run(process, [count_targets(step) for step in orders[order_of(side)]])
        runs[side].reply()  # imported, built, and warm
    shuffled = random.Random(0)  # none always has its turn after the same other
    for pair in range(arguments.pairs):
        for side, run in shuffled.sample(list(runs.items()), len(runs)):
            run.turn(arguments.steps)
            _, seconds, cpu_seconds = run.blocks[-1]
            print(
                f"pair {pair + 1}: {side} {seconds:.1f} s, {cpu_seconds:.1f} s of processors", file=sys.stderr
            )
    for run in runs.values():
        end = run.reply()
        run.losses, run.peak_mb, run.training_mb = end["losses"], end["peak_mb"], end["training_mb"]
        run.profile = end["profile"]
        run.process.wait()
    mine, theirs = runs["ours"].losses, runs["trainer_grouped"].losses
    furthest = max(abs(a - b) for a, b in zip(mine, theirs, strict=True))
    if furthest > 1e-4 and arguments.dtype == "float32":
        sys.exit(f"the losses differ by {furthest:g}: these are not the same trainings")
    return runs, furthest


class Clock:
    """In a side's process: waits for each turn, and tells how long it took."""

    def __init__(self, steps: int, pairs: int) -> None:
        self.steps, self.pairs = steps, pairs
        self.before = resident_mb()
        self.began = (0.0, 0.0)

    def after(self, step: int) -> None:
        """To be called after step number `step`, from 1; the first warms up."""
        turns, within = divmod(step - 1, self.steps)
        if within or turns > self.pairs:
            return
        seconds, cpu_seconds = time.monotonic() - self.began[0], time.process_time() - self.began[1]
        print(REPLY + json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds}), flush=True)
        if turns < self.pairs:
            sys.stdin.readline()
            self.began = time.monotonic(), time.process_time()


class Profile:
    """In a side's process: torch's profiler over its last step, where that is asked for."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.step = arguments.pairs * arguments.steps + 2 if arguments.profile else None
        self.found: dict[str, Any] = {}

    def before(self, step: int) -> None:
        """To be called before step number `step`, from 1."""
        if step == self.step:
            import torch

            self._profiler = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], with_flops=True
            )
            self._profiler.start()

    def after(self, step: int) -> None:
        """To be called after it."""
        if step != self.step:
            return
        self._profiler.stop()
        events = self._profiler.key_averages()
        total = sum(event.self_cpu_time_total for event in events)
        slowest = sorted(events, key=lambda event: -event.self_cpu_time_total)[:8]
        self.found = {
            "gflop_of_products": round(sum(event.flops for event in events) / 1e9, 1),
            "seconds": round(total / 1e6, 3),
            "share_of_time": {e.key: round(e.self_cpu_time_total / total, 3) for e in slowest},
        }


def count_targets(step: list[Any]) -> int:
    """Target tokens of a step."""
    return sum(len(ref) for _, references in step for ref in references)


def order_of(side: str) -> str:
    """Which of the prepared orders a side takes its steps from."""
    return "random" if side == "trainer" else "grouped"


def spread(figures: list[float]) -> list[float]:
    """Smallest, median, largest."""
    return [round(f, 3) for f in (min(figures), statistics.median(figures), max(figures))]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """One side in this process: its losses and memory, after its turns."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    steps = json.loads(arguments.prepared.read_text(encoding="utf-8"))[order_of(arguments.side)]
    side = ours if arguments.side in ("ours", "floor") else trainer
    profile = Profile(arguments)
    losses, before = side(base_model(arguments.shape), steps, arguments, profile)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    memory = {"peak_mb": round(peak, 1), "training_mb": round(peak - before, 1)}
    return {"losses": losses[1:], **memory, "profile": profile.found}


def resident_mb() -> float:
    """What this process holds now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


def prepare(arguments: argparse.Namespace) -> dict[str, list[Any]]:
    """Token ids of `--pairs` · `--steps` + 1 steps (one more for the profile), [source, references] each: of like lengths as in a retraining, and random."""
    import numpy as np

    from pipeline.train.batches import epoch_steps

    sources, references = encoded(arguments.data, arguments.references)
    lengths = np.array(
        [len(s) + max(map(len, refs)) - 1 for s, refs in zip(sources, references, strict=True)]
    )
    count = arguments.pairs * arguments.steps + 1 + arguments.profile
    size = ROWS // arguments.references
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
    model: Any, steps: list[Any], arguments: argparse.Namespace, profile: Profile
) -> tuple[list[float], float]:
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
    losses = []
    clock = Clock(arguments.steps, arguments.pairs)
    with lean(model, recompute=arguments.recompute):
        for step in range(len(steps)):
            profile.before(step + 1)
            size = len(steps[0])
            batches = rows.batches(np.arange(step * size, (step + 1) * size), arguments.pieces)
            targets = sum(len(batch.targets) for batch in batches)
            optimiser.zero_grad()
            loss = 0.0
            for batch in batches:
                piece = batch_loss(model, batch, arguments.dtype).total / targets
                piece.backward()  # type: ignore[no-untyped-call]
                loss += piece.item()
            if not floor:
                torch.nn.utils.clip_grad_norm_(prefix.parameters(), 1.0)
                optimiser.step()
            losses.append(loss)
            profile.after(step + 1)
            clock.after(step + 1)
    return losses, clock.before


def trainer(
    model: Any, steps: list[Any], arguments: argparse.Namespace, profile: Profile
) -> tuple[list[float], float]:
    """PEFT's prefix tuning under transformers' Trainer."""
    import torch
    from peft import PrefixTuningConfig, get_peft_model
    from transformers import Trainer, TrainerCallback, TrainingArguments

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
        peft.prompt_encoder.default.embedding.weight.copy_(prefix.key_values())

    class InTurns(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            profile.before(state.global_step + 1)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            profile.after(state.global_step)
            clock.after(state.global_step)

    class InOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    def collate(features: list[dict[str, Any]]) -> dict[str, Any]:
        width = max(len(row["input_ids"]) for row in features)
        return {
            key: torch.tensor([row[key] + [value] * (width - len(row[key])) for row in features])
            for key, value in {"input_ids": 0, "attention_mask": 0, "labels": -100}.items()
        }

    clock = Clock(arguments.steps, arguments.pairs)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            per_device_train_batch_size=ROWS,
            max_steps=len(steps),
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
        run = InOrder(peft, settings, train_dataset=rows, data_collator=collate, callbacks=[InTurns()])
        run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    return losses, clock.before


if __name__ == "__main__":
    main()
