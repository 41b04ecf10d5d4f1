"""Workspaces for tests: made once, copied for each test; their stages are `standin.py`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.params import DataParams
from pipeline.versioning import git
from pipeline.versioning.snapshot import snapshot
from pipeline.versioning.workspace import Workspace, init_workspace, write_pins

PARAMS = """\
base_models: {tiny: {source: {path: tiny}, digest: "%s"}}
prefixes:
  alpha: {base_model: tiny, task: classification, data: {path: data/rows.jsonl}}
  beta: {base_model: tiny, task: classification, data: {path: data/folder}}
""" % ("0" * 64)
ROWS = DataParams(path="data/rows.jsonl")
FOLDER = DataParams(path="data/folder")
KEY = "ab" * 32


def make(root: Path) -> Workspace:
    """A committed workspace with two prefixes, a file and a folder of raw data, and stand-in stages."""
    workspace = init_workspace(root)
    (root / "params.yaml").write_text(PARAMS)
    text = (root / "dvc.yaml").read_text()
    assert text.count("python -m pipeline.stages") == 3
    (root / "dvc.yaml").write_text(text.replace("python -m pipeline.stages", "python stage.py"))
    shutil.copyfile(Path(__file__).with_name("standin.py"), root / "stage.py")
    (root / "data/rows.jsonl").write_text('{"text": "a", "label": "x"}\n' * 3)
    (root / "data/folder/deep").mkdir(parents=True)
    (root / "data/folder/one.jsonl").write_text('{"text": "one"}\n')
    (root / "data/folder/deep/two.jsonl").write_text('{"text": "two"}\n')
    git.commit(root, ["params.yaml", "dvc.yaml", "stage.py"], "Two prefixes")
    return workspace


def duplicate(workspace: Workspace, root: Path) -> Workspace:
    shutil.copytree(workspace.root, root, symlinks=True)
    return Workspace(root)


def pin(workspace: Workspace, name: str = "alpha", **changes: Any) -> str:
    """Snapshot the data, write pins, return the baseline."""
    data = {"alpha": ROWS, "beta": FOLDER}[name]
    version = snapshot(workspace, name, data)
    one = data.path if name == "alpha" else f"{data.path}/one.jsonl"
    pins: dict[str, Any] = {
        "base_model": {"name": "tiny", "digest": "0"},
        "code": {"version": "1", "digest": "0"},
        "data": {"md5": version.md5, "manifest": dict(version.manifest)},
        "champion": None,
        "warm_start": None,
        "run_key": KEY,
        "params": {
            "task": "classification",
            "data": {"path": one, "slices": []},
            "prefix": {"length": 4},
            "training": {"learning_rate": 0.1},
            "evaluation": {"batch_size": 2},
        },
    }
    return write_pins(workspace, name, {**pins, **changes})


def cached(workspace: Workspace, md5: str) -> Path:
    return workspace.root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]


def stored(workspace: Workspace, md5: str) -> Path:
    return workspace.state / "dvc-remote/files/md5" / md5[:2] / md5[2:]


def tamper(path: Path, content: bytes = b"tampered") -> None:
    """Change a stored object and leave its mode as it was: DVC distrusts an object that became writable."""
    mode = path.stat().st_mode
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(mode)


def wait_for(path: Path, seconds: float = 60) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.02)
    raise AssertionError(f"{path} did not appear within {seconds} s")


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


RUN = """\
import sys
from pathlib import Path
from pipeline.versioning.experiment import run_experiment
from pipeline.versioning.workspace import Workspace
root, name, key = sys.argv[1:]
done = run_experiment(Workspace(Path(root)), name, key, {}, lambda text: print(text, end="", flush=True))
print("COMMIT", done.commit, ",".join(done.ran))
"""


def start(workspace: Workspace, name: str, key: str = KEY, **env: str) -> subprocess.Popen[str]:
    """`run_experiment` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(workspace.root), name, key],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
