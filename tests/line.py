"""A workspace with a tiny base and little data, for tests of the whole line through the real command."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.base import base_files
from pipeline.digest import digest
from pipeline.environment import quiet_environment
from tests import tiny

PREFIXLINE = Path(sys.executable).with_name("prefixline")
COLOURS, ANIMALS = "red green blue".split(), "cat dog bird".split()
FILLERS = "the a tree river runs sees likes under over near big small old new one two three".split()

PARAMS = """\
base_models:
  tiny:
    source: {{path: "{base}"}}
    digest: {digest}
defaults:
  prefix: {{length: 4, initialisation: version}}
  training: {{epochs: 10, batch_size: 16, learning_rate: 0.1, head_learning_rate: 0.1, threads: 1}}
  gate:
    resamples: 500
    floors: {{accuracy: {floor}}}
    not_worse_than_champion: {{metric: accuracy, margin: 0.2}}
prefixes:
  words:
    base_model: tiny
    task: classification
    data: {{path: data/words.jsonl, slices: [length]}}
    prefix: {{text_from: labels}}  # the labels' names while nothing is in production
"""


def rows(count: int, *, seed: int = 0) -> list[dict[str, str]]:
    """Texts that name a colour or an animal among fillers; the label says which."""
    draw = random.Random(seed)
    made = {}
    while len(made) < count:
        label = draw.choice(["colour", "animal"])
        words = draw.choices(FILLERS, k=draw.randint(3, 8))
        words.insert(draw.randrange(len(words)), draw.choice(COLOURS if label == "colour" else ANIMALS))
        text = " ".join(words)
        made[text] = {"text": text, "label": label, "length": "long" if len(words) > 6 else "short"}
    return list(made.values())


@dataclass(frozen=True)
class Line:
    """A workspace and the command in it.

    Attributes:
        environment: what every command gets besides the quiet environment.
    """

    root: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """`prefixline ARGUMENTS` in the workspace, bounded."""
        return subprocess.run(
            [str(PREFIXLINE), *arguments],
            cwd=self.root,
            env={**os.environ, **quiet_environment(), **self.environment, **(env or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=580,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """`prefixline ARGUMENTS` in the workspace, going on while the test looks at its output."""
        return subprocess.Popen(
            [str(PREFIXLINE), *arguments],
            cwd=self.root,
            env={**os.environ, **quiet_environment(), **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def change_params(self, old: str, new: str) -> None:
        """Replace `old` by `new` in params.yaml, and commit."""
        path = self.root / "params.yaml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
        self.commit("Parameters")

    def json(self, *arguments: str, expect: int = 0) -> Any:
        """What the command printed as JSON; its exit code must be `expect`."""
        done = self.run(*arguments, "--json")
        assert done.returncode == expect, f"exit code {done.returncode}\n{done.stderr}"
        return json.loads(done.stdout)

    def write_rows(self, content: list[dict[str, str]]) -> None:
        """Put `content` where the prefix's data is."""
        text = "".join(json.dumps(row) + "\n" for row in content)
        (self.root / "data" / "words.jsonl").write_text(text)

    def git(self, *arguments: str) -> str:
        """What git prints."""
        done = subprocess.run(["git", *arguments], cwd=self.root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def commit(self, message: str) -> None:
        """Commit every change of tracked files."""
        self.git("-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qam", message)


def make_line(
    folder: Path,
    *,
    floor: float = 0.6,
    count: int = 400,
    scale: float = 0.3,
    environment: Mapping[str, str] | None = None,
) -> Line:
    """A new workspace with a tiny encoder beside it and `count` rows, ready for `prefixline retrain words`.

    Args:
        scale: standard deviation of the encoder's weights.
        environment: see `Line`.
    """
    base = tiny.tiny_encoder(folder / "base", scale=scale)
    line = Line(folder / "workspace", environment or {})
    done = subprocess.run(
        [str(PREFIXLINE), "init", str(line.root)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    identity = digest(base_files.identity_files(base))
    (line.root / "params.yaml").write_text(PARAMS.format(base=base, digest=identity, floor=floor))
    line.commit("Parameters")
    line.write_rows(rows(count))
    return line
