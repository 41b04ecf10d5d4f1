"""The demo: harvest docstrings, retrain, look, retrain again, change the data, retrain.

Everything runs through the `prefixline` command, in this checkout, which is a workspace. Run by `make demo`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.environment import quiet_environment

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
NAME = "docstrings"
DATA = "data/docstrings.jsonl"
ROWS = "600"
BUNDLE = f"build/{NAME}"


def main() -> None:
    """Run every step; the first that fails ends the demo with its exit code."""
    started = time.monotonic()
    os.chdir(ROOT)
    os.environ.update(quiet_environment())
    os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"

    say("1. Data: docstrings of the installed libraries. Task: which library is it from?")
    run(sys.executable, "examples/docstrings.py", "--out", DATA, "--rows", ROWS)

    say("2. Retrain: version the data, train a prefix, judge it, register it if it passes.")
    first = retrain()
    expect(first["version"] is not None, "the gate rejected the prefix; the reasons are above")

    say("3. Lineage: what the candidate was made from.")
    run("prefixline", "lineage", f"{NAME}@candidate")

    say("4. Retrain again: nothing has changed, so nothing is trained or registered.")
    second = retrain()
    expect(second["outcome"] == "unchanged", f"expected the outcome unchanged, got {second['outcome']}")

    say(f"5. Version {first['version']} goes into production, so that the next one has a champion to face.")
    for stage in ("staging", "production"):
        run(
            "prefixline",
            "promote",
            NAME,
            first["version"],
            "--to",
            stage,
            "--reason",
            "the demo's first version",
        )

    say("6. More data: a new dataset version. The challenger is compared with the champion on the same rows.")
    run(sys.executable, "examples/docstrings.py", "--out", DATA, "--rows", ROWS, "--more", "60")
    third = retrain()

    say("7. Where everything stands, and how it came there.")
    run("prefixline", "status")
    run("prefixline", "history", NAME)

    say("8. Both versions, hashed again and followed to the data, base model and code they were made from.")
    run("prefixline", "verify", NAME)

    say("9. The version in production as a bundle, which is verified by itself: no workspace, no server.")
    shutil.rmtree(BUNDLE, ignore_errors=True)
    run("prefixline", "export", f"{NAME}@production", "--out", BUNDLE)
    run("prefixline", "verify", "--offline", BUNDLE)

    say("10. All of it as a page.")
    run("prefixline", "audit", NAME, "--html")
    show_end(time.monotonic() - started, [first, third])


def say(text: str) -> None:
    """A heading on stderr, where progress goes."""
    print(f"\n\033[1m{text}\033[0m" if sys.stderr.isatty() else f"\n=== {text}", file=sys.stderr, flush=True)


def expect(condition: bool, complaint: str) -> None:
    """End the demo when what it shows is not so."""
    if not condition:
        sys.exit(f"demo: {complaint}")


def run(*command: str) -> None:
    """Run a step with its output where the reader is."""
    done = subprocess.run(command, check=False)
    expect(done.returncode == 0, f"{' '.join(command)} ended with exit code {done.returncode}")


def retrain() -> dict[str, Any]:
    """`prefixline retrain` as a person sees it; then what it reported, from its record.

    A rejection by the gate is an honest result of the demo too, and does not end it.
    """
    done = subprocess.run(
        ["prefixline", "retrain", NAME, "--json"], check=False, stdout=subprocess.PIPE, text=True
    )
    expect(done.returncode in (0, 3), f"prefixline retrain ended with exit code {done.returncode}")
    outcome: dict[str, Any] = json.loads(done.stdout)
    show(outcome)
    return outcome


def show(outcome: dict[str, Any]) -> None:
    """The outcome and the verdict, line by line."""
    dataset = outcome["dataset"]
    print(f"outcome   {outcome['outcome']}, version {outcome['version']}")
    print(f"data      {dataset['rows']} rows, md5 {dataset['md5']}")
    for criterion in outcome["verdict"]["criteria"]:
        print(f"  {'pass' if criterion['passed'] else 'FAIL'}  {criterion['reason']}")
    sys.stdout.flush()


def show_end(seconds: float, outcomes: list[dict[str, Any]]) -> None:
    """Where the pages are, and how to open the servers' own."""
    print(f"\nThe demo took {seconds / 60:.1f} minutes. Open these pages in a browser:")
    print(f"  {ROOT / 'reports/index.html'}   all retrainings")
    print(f"  {ROOT / 'reports' / NAME / 'audit.html'}   stages, events, versions, verification")
    for outcome in outcomes:
        print(f"  {outcome['report']}")
    print("The servers' own pages: .venv/bin/prefixline up, then http://127.0.0.1:5000 (MLflow)")
    print("and http://127.0.0.1:4200 (Prefect); .venv/bin/prefixline deploy serves the schedule.")


if __name__ == "__main__":
    main()
