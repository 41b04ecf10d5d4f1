"""Several prefixes in one batch against one batch for each: forward, generation and training; time and peak memory.

    python benchmarks/several.py [--prefixes 16] [--rows 4] [--steps 4] [--pairs 5] [--threads 1]

The base is a random Llama of 6 layers of 384 with 32,000 words. Prefixes are 5 to 20 positions long; each has `--rows`
rows of 8 to 24 tokens, and its training as many sources a step, of 8 to 16 tokens with a reference or two. The two
sides are timed in turns in one process; the peak memory of each is that of a process of its own:

    together   one batch for all prefixes; one fleet (`pipeline.train.fleet.train_together`)
    apart      a batch for each prefix, one after another; a training for each, one after another

Both sides must give the same: logits and losses to 1e-4, generated tokens exactly, or the benchmark fails. Prints JSON:
seconds and peak memory of each side, and the ratios of each pair, smallest / median / largest.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

VOCABULARY, NEW, END = 32_000, 8, 31_999
WORK, SIDES = ("forward", "generate", "train"), ("together", "apart")


def main() -> None:
    """Measure both sides of every kind of work in turns, `--pairs` times, and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prefixes", type=int, default=16)
    parser.add_argument("--rows", type=int, default=4, help="rows of each prefix in a batch")
    parser.add_argument("--steps", type=int, default=4, help="optimiser steps of each training")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        work, side = arguments.measure
        print(json.dumps(measure(work, side, arguments)))
        return
    settings = {key: getattr(arguments, key) for key in ("prefixes", "rows", "steps", "pairs", "threads")}
    result: dict[str, Any] = dict(settings)
    for work in WORK:
        times = measured(work, "both", arguments.pairs)["seconds"]
        memory = {side: measured(work, side, 1) for side in SIDES}
        result[work] = {
            **{
                side: {
                    "seconds": spread(times[side]),
                    **{key: memory[side][key] for key in ("base_mb", "peak_mb")},
                }
                for side in SIDES
            },
            "together_is_faster_by": spread(
                [apart / one for one, apart in zip(times["together"], times["apart"], strict=True)]
            ),
            "memory_of_together": round(memory["together"]["peak_mb"] / memory["apart"]["peak_mb"], 3),
        }
        print(
            json.dumps({work: result[work]}), file=sys.stderr
        )  # what is measured is not lost if the rest is cut off
    print(json.dumps(result, indent=2))


def measured(work: str, side: str, pairs: int) -> dict[str, Any]:
    """What `measure` says in a process of its own."""
    print(f"{work}: {side}", file=sys.stderr)
    command = [sys.executable, __file__, *sys.argv[1:], "--measure", work, side, "--pairs", str(pairs)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def check(work: str, ours: list[float], theirs: list[float]) -> None:
    """Stop where the two sides did not do the same."""
    furthest = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    if furthest > (0 if work == "generate" else 1e-4):
        sys.exit(f"{work}: the answers differ by {furthest:g}: the two sides do not compute the same")


def spread(figures: list[float]) -> list[float]:
    """Smallest, median, largest."""
    return [round(f, 3) for f in (min(figures), statistics.median(figures), max(figures))]


def measure(work: str, side: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One side or both in this process: seconds by side, memory before and at the peak."""
    import torch
    import transformers

    from pipeline.prefix.tuning import Prefix, PrefixShape

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=384, intermediate_size=1024, num_hidden_layers=6,
        num_attention_heads=6, max_position_embeddings=256, initializer_range=0.05, pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    draw = random.Random(-1)
    prefixes = []
    for number in range(arguments.prefixes):
        prefix = Prefix(PrefixShape.of_model(model), draw.randint(5, 20))
        prefix.init_random(0.5, torch.Generator().manual_seed(number))
        prefixes.append(prefix)
    base = peak()
    run = {"forward": forward, "generate": generation, "train": training}[work]
    sides = SIDES if side == "both" else (side,)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for pair in range(arguments.pairs):
        answers = []
        for name in sides if pair % 2 == 0 else sides[::-1]:
            # The same texts for both; a training changes its prefixes.
            taken, answer = run(model, copy.deepcopy(prefixes), name, arguments, random.Random(pair))
            seconds[name].append(taken)
            answers.append(answer)
        if len(answers) == 2:
            check(work, *answers)
    return {"seconds": seconds, "base_mb": base, "peak_mb": peak()}


def peak() -> float:
    """The most memory this process has had so far, in MB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def batches(count: int, rows: int, draw: random.Random, *, side: str, left: bool) -> list[dict[str, Any]]:
    """`rows` rows for each of `count` prefixes: one batch of all, or a batch for each."""
    import torch

    texts = [[draw.randrange(1, END) for _ in range(draw.randint(8, 24))] for _ in range(count * rows)]
    parts = [texts] if side == "together" else [texts[i : i + rows] for i in range(0, len(texts), rows)]
    made = []
    for part in parts:
        width = max(map(len, part))
        gaps = [[0] * (width - len(text)) for text in part]
        ids = [gap + text if left else text + gap for text, gap in zip(part, gaps, strict=True)]
        input_ids = torch.tensor(ids)
        made.append({"input_ids": input_ids, "attention_mask": (input_ids != 0).long()})
    return made


def forward(
    model: Any, prefixes: list[Any], side: str, arguments: argparse.Namespace, draw: random.Random
) -> tuple[float, list[float]]:
    """Three times the next token's logits of every row, after one that warms up."""
    import torch

    from pipeline.prefix.attention import attach
    from pipeline.prefix.several import attach_several

    rows = arguments.rows
    inputs = batches(len(prefixes), rows, draw, side=side, left=True)
    assigned = [i for i in range(len(prefixes)) for _ in range(rows)]

    def once() -> torch.Tensor:
        if side == "together":
            with attach_several(model, prefixes, assigned):
                together: torch.Tensor = model(**inputs[0], logits_to_keep=1).logits
                return together
        found = []
        for prefix, batch in zip(prefixes, inputs, strict=True):
            with attach(model, prefix):
                found.append(model(**batch, logits_to_keep=1).logits)
        return torch.cat(found)

    with torch.inference_mode():
        logits = once()
        began = time.perf_counter()
        for _ in range(3):
            once()
        seconds = (time.perf_counter() - began) / 3
    return seconds, logits[:, 0, :50].flatten().tolist()


def generation(
    model: Any, prefixes: list[Any], side: str, arguments: argparse.Namespace, draw: random.Random
) -> tuple[float, list[float]]:
    """`NEW` tokens behind every row by greedy search, after a few that warm up."""
    import torch

    from pipeline.prefix.generation import generate
    from pipeline.prefix.several import generate_several

    rows = arguments.rows
    inputs = batches(len(prefixes), rows, draw, side=side, left=True)
    assigned = [i for i in range(len(prefixes)) for _ in range(rows)]

    def once(new: int) -> torch.Tensor:
        settings: dict[str, Any] = {"max_new_tokens": new, "eos_token_id": END + 1, "pad_token_id": 0}
        if side == "together":
            return generate_several(model, prefixes, assigned, **inputs[0], **settings)
        return torch.cat(
            [
                generate(model, prefix, **batch, **settings)
                for prefix, batch in zip(prefixes, inputs, strict=True)
            ]
        )

    once(2)
    began = time.perf_counter()
    tokens = once(NEW)
    return time.perf_counter() - began, tokens.flatten().tolist()


def training(
    model: Any, prefixes: list[Any], side: str, arguments: argparse.Namespace, draw: random.Random
) -> tuple[float, list[float]]:
    """`--steps` steps of every prefix and a validation at the end, on packed rows."""
    import datasets

    from pipeline.params import TrainingParams
    from pipeline.prefix.attention import attach
    from pipeline.train.batches import GenerationRows
    from pipeline.train.fleet import FleetJob, train_together
    from pipeline.train.training_loop import Loop

    def tokens(least: int, most: int) -> list[int]:
        return [draw.randrange(1, END) for _ in range(draw.randint(least, most))]

    def rows(count: int) -> GenerationRows:
        columns = {
            "input_ids": [tokens(8, 16) for _ in range(count)],
            "target_ids": [[tokens(6, 12) for _ in range(draw.randint(1, 2))] for _ in range(count)],
        }
        return GenerationRows(datasets.Dataset.from_dict(columns), pad=0, model=model)

    params = TrainingParams(batch_size=arguments.rows, epochs=1, validations_per_epoch=1, learning_rate=0.01)
    count = arguments.rows * arguments.steps
    jobs = [FleetJob(prefix, rows(count), rows(arguments.rows), params, {}) for prefix in prefixes]
    began = time.perf_counter()
    if side == "together":
        losses = [result.counters.best_loss or 0.0 for result in train_together(model, jobs)]
        return time.perf_counter() - began, losses
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        for number, job in enumerate(jobs):
            own = Path(folder) / str(number)
            own.mkdir()
            with attach(model, job.prefix):
                loop = Loop(
                    model, {"prefix": dict(job.prefix.named_parameters())}, rows=job.rows,
                    validation=job.validation, params=params, folder=own, identity="", on_curve=None,
                    unit="tokens",
                )  # fmt: skip
                loop.run()
            losses.append(loop.counters.best_loss or 0.0)
    return time.perf_counter() - began, losses


if __name__ == "__main__":
    main()
