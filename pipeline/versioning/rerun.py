"""An experiment's stages once more, from nothing, in a copy of its commit that leaves nothing behind.

The copy is that of `experiment`, with two differences. DVC runs the stages by `repro --force --no-commit`: it takes
nothing from its run cache and puts nothing into its cache. And what stages take from a workspace besides the commit
(adapters) and keep there (checkpoints) is in a folder of the copy's own, so that a training does not go on from the
checkpoints of the one that it repeats.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import ExperimentError
from pipeline.files import write_json
from pipeline.locks import exclusive
from pipeline.versioning.experiment import STAGES, copy_commit, explain, run_dvc
from pipeline.versioning.stored import fetch_dataset
from pipeline.versioning.workspace import Workspace


@dataclass(frozen=True)
class Rerun:
    """A copy of a commit to run the stages in. Made by `copied`.

    Attributes:
        folder: everything of it; it goes when the copy goes.
        copy: the files of the commit.
    """

    workspace: Workspace
    folder: Path
    copy: Path
    lock: int

    @property
    def stand_in(self) -> Path:
        """What the stages take for the workspace's root: its `.prefixline` holds their adapters and checkpoints."""
        return self.folder / "stand-in"

    def put_data(self, git_commit: str, path: str, manifest: Mapping[str, str]) -> None:
        """Put a dataset version where the stages look for it; arguments as `stored.fetch_dataset`.

        Raises:
            IntegrityError: DVC's cache or remote gave other bytes than `manifest` says.
            WorkspaceError: neither of them has the data, or the repository not the commit.
        """
        fetched = fetch_dataset(self.workspace, git_commit, path, manifest, self.folder / "data")
        target = self.copy / path
        target.parent.mkdir(parents=True, exist_ok=True)
        single = fetched / PurePosixPath(path).name
        (single if set(manifest) == {single.name} and single.is_file() else fetched).rename(target)

    def run(
        self, name: str, pins: Mapping[str, Any], env: Mapping[str, str], on_output: Callable[[str], None]
    ) -> Path:
        """Run prepare, train and evaluate of the prefix `name` with these pins.

        Returns:
            The folder with what they made: artifacts/NAME in the copy.

        Raises:
            ExperimentError: a stage failed; with its own last lines.
        """
        write_json(self.copy / "pins" / f"{name}.json", pins)
        log = self.folder / "dvc.log"
        arguments = ["repro", "--single-item", "--force", "--no-commit"]
        targets = [f"{stage}@{name}" for stage in STAGES]
        env = {**env, "PREFIXLINE_WORKSPACE": str(self.stand_in)}
        status, tail = run_dvc(
            self.workspace, self.copy, log, [*arguments, *targets], env, on_output, self.lock
        )
        if status != 0:
            raise ExperimentError(explain(name, status, tail, log.read_text(errors="replace")))
        return self.copy / "artifacts" / name


@contextmanager
def copied(workspace: Workspace, commit: str, waiting: Callable[[], None]) -> Iterator[Rerun]:
    """A copy of `commit`, gone afterwards whatever happens; what a killed process left is removed first.

    There is one at a time in a workspace.

    Args:
        waiting: called once if another process has one now.

    Raises:
        WorkspaceError: git or DVC could not do their part.
    """
    folder = workspace.state / "reproduction"
    with exclusive(folder.with_suffix(".lock"), waiting=waiting) as lock:
        shutil.rmtree(folder, ignore_errors=True)
        try:
            yield Rerun(workspace, folder, copy_commit(workspace, folder, commit), lock)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
