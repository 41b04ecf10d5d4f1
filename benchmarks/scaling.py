"""How the cost of training grows: with the number of examples, and with the length of the prefix.

    python benchmarks/scaling.py [--sizes 1000 10000 100000] [--lengths 1 10 100 500] [--rounds 5] [--steps 30]

Rows are drawn at random: a source of 10 to 40 tokens with one to five references of 5 to 30. The base is a random Llama
of 2 layers of 64 with 1,000 words, so that what is not the model's own pass weighs as much as it can.

For each size: the rows are opened from disk, an epoch is planned, and steps are taken at random out of it. For each
length: steps of the same rows. What is compared runs in turns. Prints JSON in milliseconds of processor time a target,
smallest / median / largest, and each median over that of the smallest size or length.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCH = 8


def main() -> None:
    """Measure sizes, then lengths, and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 10, 100, 500])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30, help="in a round")
    arguments = parser.parse_args()
    import datasets
    import torch

    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for size in {*arguments.sizes, min(arguments.sizes)}:
            save(Path(folder) / str(size), size)
        rounds, steps = range(arguments.rounds), arguments.steps
        sizes: dict[int, list[float]] = {size: [] for size in arguments.sizes}
        lengths: dict[int, list[float]] = {length: [] for length in arguments.lengths}
        for number in rounds:
            for size in sizes:
                sizes[size].append(measured(Path(folder) / str(size), 10, steps, seed=number))
        for number in rounds:
            for length in lengths:
                rows = Path(folder) / str(min(arguments.sizes))
                lengths[length].append(measured(rows, length, steps, seed=number))
    report = {
        "rounds": arguments.rounds,
        "steps_in_a_round": steps,
        "ms_a_target_by_examples": table(sizes),
        "ms_a_target_by_prefix_length": table(lengths),
    }
    print(json.dumps(report, indent=2))


def table(measurements: dict[int, list[float]]) -> dict[str, Any]:
    """Spread of each, and its median over the first's."""
    first = statistics.median(next(iter(measurements.values())))
    return {
        str(key): {
            "ms": [round(f, 4) for f in (min(times), statistics.median(times), max(times))],
            "ratio": round(statistics.median(times) / first, 3),
        }
        for key, times in measurements.items()
    }


def save(folder: Path, examples: int) -> None:
    """`examples` rows of random tokens, as `prepare` leaves them."""
    import datasets
    import numpy as np

    random = np.random.default_rng(0)

    def tokens(low: int, high: int) -> list[int]:
        return list(map(int, random.integers(1, 1000, random.integers(low, high + 1))))

    rows = {
        "input_ids": [tokens(10, 40) for _ in range(examples)],
        "target_ids": [[tokens(5, 30) for _ in range(random.integers(1, 6))] for _ in range(examples)],
    }
    datasets.Dataset.from_dict(rows).save_to_disk(str(folder))


def measured(folder: Path, length: int, steps: int, *, seed: int) -> float:
    """Milliseconds of processor time a target: of a step, and its share of opening the rows and planning an epoch."""
    import datasets
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from pipeline.prefix.attention import attach
    from pipeline.prefix.lean import lean
    from pipeline.prefix.tuning import Prefix, PrefixShape
    from pipeline.train.batches import GenerationRows, epoch_steps
    from pipeline.train.losses import batch_loss

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    prefix = Prefix(PrefixShape.of_model(model), length)
    prefix.init_random(0.02, torch.Generator().manual_seed(0))
    optimiser = torch.optim.AdamW(prefix.parameters(), lr=1e-2, weight_decay=0.0)

    def opened() -> tuple[GenerationRows, list[Any]]:
        rows = GenerationRows(datasets.load_from_disk(str(folder)), pad=0, model=model)
        return rows, epoch_steps(rows.lengths, BATCH, seed=seed, epoch=0)

    (rows, order), opening = timed(opened)
    # the same draw for every size, so that only the rows' number differs
    chosen = np.random.default_rng(seed).random(steps + 1)
    targets = 0

    def step(at: float) -> None:
        nonlocal targets
        (batch,) = rows.batches(order[int(at * len(order))], 1)
        optimiser.zero_grad()
        loss = batch_loss(model, batch).total / len(batch.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        targets += len(batch.targets)

    with attach(model, prefix), lean(model, recompute=False):
        step(float(chosen[0]))  # warms up
        targets = 0
        _, stepping = timed(lambda: deque(map(step, map(float, chosen[1:])), maxlen=0))
    epoch_targets = targets / steps * len(order)
    return 1000 * (stepping / targets + opening / epoch_targets)


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """What `function` returns, and the seconds of processor time it took."""
    began = time.process_time()
    return function(), time.process_time() - began


if __name__ == "__main__":
    main()
