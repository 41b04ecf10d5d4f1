"""Forward and backward pass of an encoder with a prefix: ours, PEFT's, and the base without one.

    python -m benchmarks.encoder [--base FOLDER] [--length 16] [--rows 32] [--tokens 64] [--pairs 7] [--threads 1]

`--base` is a model's folder in transformers' format; by default all-MiniLM-L6-v2 from its package. The rows are random
tokens, once all of `--tokens`, once of an eighth of that and up, padded on the right. Each side's pass is done in turns in
one process; logits must agree to 1e-4 and the prefix's gradients to 1e-4 of the largest, or the benchmark fails.

Prints JSON: processor seconds of each side and the ratios of each pair to ours, smallest / median / largest.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.base import base_model
from pipeline.params import BaseModelParams
from pipeline.prefix.attention import attach
from pipeline.prefix.tuning import Prefix, PrefixShape

LABELS = tuple("abcde")


def main() -> None:
    """Measure the three sides on full and on padded rows, and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path)
    parser.add_argument("--length", type=int, default=16, help="prefix positions")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    keys = ("length", "rows", "tokens", "pairs", "threads")
    result: dict[str, Any] = {key: getattr(arguments, key) for key in keys}
    result |= measured(arguments)
    print(json.dumps(result, indent=2))


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """{"full": …, "padded": …}, each side's seconds and ratio to ours."""
    import peft
    import torch

    from benchmarks.retrainings import base_of

    torch.set_num_threads(arguments.threads)
    source, identity = base_of(arguments.base)
    params = BaseModelParams.model_validate({"source": json.loads(source), "digest": identity})
    base = base_model.resolve("base", params, Path.cwd())
    model = base_model.load(base, "classification", labels=LABELS).eval()
    prefix = Prefix(PrefixShape.of_model(model), arguments.length)
    prefix.init_random(0.5, torch.Generator().manual_seed(0))
    theirs = peft.get_peft_model(
        copy.deepcopy(model),
        peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=arguments.length),
    ).eval()
    vectors = theirs.prompt_encoder.default.embedding.weight
    with torch.no_grad():
        vectors.copy_(prefix.key_values())
    model.classifier.requires_grad_(True)  # as in a training; PEFT's copy of it is trained anyway

    def ours(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        prefix.vectors.grad = None
        with attach(model, prefix):
            logits = passed(model, inputs)
        return logits, prefix.vectors.grad

    def pefts(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        vectors.grad = None
        return passed(theirs, inputs), vectors.grad

    def alone(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        embedded = model.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_()
        logits = passed(model, {"inputs_embeds": embedded, "attention_mask": inputs["attention_mask"]})
        return logits, None

    sides = {"ours": ours, "peft": pefts, "no_prefix": alone}
    found: dict[str, Any] = {}
    for name, least in (("full", arguments.tokens), ("padded", max(1, arguments.tokens // 8))):
        inputs = rows_of(arguments, least, model.get_input_embeddings().weight.shape[0])
        answers = {side: once(inputs) for side, once in sides.items()}  # which also warms up
        check(answers["ours"], answers["peft"])
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(arguments.pairs):
            for side, once in sides.items():
                began = time.process_time()
                once(inputs)
                times[side].append(time.process_time() - began)
        found[name] = {
            side: {
                "cpu_seconds": spread(taken),
                "to_ours": spread([a / b for a, b in zip(taken, times["ours"], strict=True)]),
            }
            for side, taken in times.items()
        }
        print(f"{name} rows: done", file=sys.stderr)
    return found


def passed(model: Any, inputs: dict[str, Any]) -> Any:
    """The logits of one forward pass, after the backward pass of their sum."""
    logits = model(**inputs).logits
    logits.sum().backward()
    return logits.detach()


def rows_of(arguments: argparse.Namespace, least: int, words: int) -> dict[str, Any]:
    """Random rows of `least` tokens and up, padded on the right."""
    import torch

    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(999, words, (arguments.rows, arguments.tokens), generator=generator)
    lengths = torch.randint(least, arguments.tokens + 1, (arguments.rows, 1), generator=generator)
    mask = (torch.arange(arguments.tokens)[None] < lengths).long()
    return {"input_ids": input_ids * mask, "attention_mask": mask}


def check(ours: tuple[Any, Any], theirs: tuple[Any, Any]) -> None:
    """Stop where the two do not compute the same."""
    logits = (ours[0] - theirs[0]).abs().max().item()
    gradients = ((ours[1] - theirs[1]).abs().max() / theirs[1].abs().max()).item()
    print(
        f"largest difference of logits {logits:.1g}, of gradients {gradients:.1g} of the largest",
        file=sys.stderr,
    )
    if not (logits < 1e-4 and gradients < 1e-4):
        sys.exit("the two sides do not compute the same")


def spread(figures: list[float]) -> list[float]:
    """Smallest, median, largest."""
    return [round(f, 3) for f in (min(figures), statistics.median(figures), max(figures))]


if __name__ == "__main__":
    main()
