"""Whole retrainings on public data sets: what the figures under "Whole retrainings" in RESULTS.md come from.

    python -m benchmarks.retrainings banking77 --data FOLDER     # train.csv: text, category
    python -m benchmarks.retrainings e2e --data FOLDER --base FOLDER     # trainset.csv: mr, ref

Makes a workspace in a temporary folder, runs `prefixline retrain` in it, and prints its JSON with the number of
steps. `--base` is a model's folder in transformers' format; banking77 uses all-MiniLM-L6-v2 from its package.
One seed; nothing is chosen on test rows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.line import BIN, ROOT, run
from pipeline.base import base_files
from pipeline.digest import digest
from pipeline.params import PathSource
from pipeline.params_file import load_params

BANKING77 = """\
base_models:
  base:
    source: {source}
    digest: {digest}
prefixes:
  banking77:
    base_model: base
    task: classification
    data: {{path: data/train.csv, label: category}}
    prefix: {{length: 16}}
    training: {{learning_rate: 0.03, head_learning_rate: 0.03, batch_size: 16, epochs: 3}}
    gate: {{floors: {{accuracy: 0.8}}}}
"""

E2E = """\
base_models:
  base:
    source: {source}
    digest: {digest}
prefixes:
  e2e:
    base_model: base
    task: generation
    data: {{path: data/trainset.csv, source: mr, target: ref}}
    prefix: {{length: 20, initialisation: random}}
    training: {{learning_rate: 0.1, batch_size: 3, epochs: 2, max_steps: 1600}}
    gate: {{better_than_base: {{metric: loss}}}}
"""

SETS = {"banking77": (BANKING77, "train.csv"), "e2e": (E2E, "trainset.csv")}


def main() -> None:
    """Retrain on one data set and print what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=SETS)
    parser.add_argument("--data", type=Path, required=True, help="the data set's folder")
    parser.add_argument("--base", type=Path, help="the base model's folder; default: all-MiniLM-L6-v2")
    arguments = parser.parse_args()
    template, file = SETS[arguments.name]
    os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as scratch:
        workspace = Path(scratch) / "workspace"
        run("prefixline", "init", str(workspace))
        (workspace / "data" / file).write_bytes((arguments.data / file).read_bytes())
        source, identity = base_of(arguments.base)
        (workspace / "params.yaml").write_text(template.format(source=source, digest=identity))
        author = ("-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost")
        run("git", "-C", str(workspace), *author, "commit", "-qam", arguments.name)
        # Progress goes to the terminal; a rejection is a result.
        command = ["prefixline", "-w", str(workspace), "retrain", arguments.name, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode not in (0, 3):
            sys.exit(f"{' '.join(command)} ended with exit code {done.returncode}")
        outcome = json.loads(done.stdout)
        record = f"{outcome['experiment']}:artifacts/{arguments.name}/trained.json"
        trained = run("git", "-C", str(workspace), "show", record)
        print(json.dumps({**outcome, "trained": json.loads(trained)}, indent=2))


def base_of(folder: Path | None) -> tuple[str, str]:
    """A base model's source as YAML, and its digest."""
    if folder is None:
        base = load_params(ROOT / "params.yaml").base_models["minilm"]
        return json.dumps(base.source.model_dump()), base.digest
    path = folder.resolve()
    _, files = base_files.find(PathSource(path=str(path)), "0" * 64, path, "base")
    return json.dumps({"path": str(path)}), digest(files)


if __name__ == "__main__":
    main()
