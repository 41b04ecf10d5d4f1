"""An MLflow dataset source that gives back the exact rows a run was trained on, through git and DVC.

MLflow finds the class by its entry point (group `mlflow.dataset_source`, name `dvc`), so
`mlflow.data.get_source(run.inputs.dataset_inputs[0]).load()` works wherever prefixline is installed.

What is recorded is valid on any machine: the path inside the repository, the commit, DVC's md5, our SHA-256
manifest, and the repository's address if it has a remote one. A path of this machine is never recorded. When
loading, the repository is `PREFIXLINE_WORKSPACE`, else the current folder, if it knows the commit (a commit id
is its own proof), else the remote address.

The class does not inherit MLflow's `DatasetSource`: that would make this module import mlflow, which imports
this module by the entry point before the class exists, and the source would then not be registered in a process
that imports this module first (tried). MLflow asks only for the methods.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pipeline.data.whole import read_whole
from pipeline.digest import digest, manifest, verify
from pipeline.errors import IntegrityError, WorkspaceError
from pipeline.files import new_folder
from pipeline.versioning import git

if TYPE_CHECKING:
    import datasets
    import pandas  # type: ignore[import-untyped]

SOURCE_LIMIT = 60_000
"""Characters; MLflow refuses a source of more than 65,535. A longer manifest is recorded by its digest alone."""


@dataclass(frozen=True)
class DvcDatasetSource:
    """One version of a file or folder that DVC tracks.

    Attributes:
        path: of the data, relative to the repository's root, posix.
        rev: the git commit whose .dvc file names this version, 40 hex characters.
        md5: DVC's hash of it (with `.dir` for a folder).
        manifest_digest: SHA-256 over the manifest.
        manifest: {file: SHA-256}, a single file under its own name; null where it would be too long.
        repo: address of the repository, null where it has no remote one.
    """

    path: str
    rev: str
    md5: str
    manifest_digest: str
    manifest: Mapping[str, str] | None = None
    repo: str | None = None

    @classmethod
    def of_version(
        cls, workspace: Path, *, path: str, rev: str, md5: str, manifest: Mapping[str, str]
    ) -> DvcDatasetSource:
        """The source of the data at `path` in `workspace`, as committed in `rev`."""
        short = manifest if len(json.dumps(dict(manifest))) <= SOURCE_LIMIT else None
        return cls(path, rev, md5, digest(dict(manifest)), short, remote_address(workspace))

    @staticmethod
    def _get_source_type() -> str:
        return "dvc"

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        return False  # a bare string does not say which version is meant

    @classmethod
    def _resolve(cls, raw_source: Any) -> DvcDatasetSource:
        raise NotImplementedError(f"{raw_source!r} does not name a version; make a DvcDatasetSource of it")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {
            "path": self.path,
            "rev": self.rev,
            "md5": self.md5,
            "manifest_digest": self.manifest_digest,
            "manifest": None if self.manifest is None else dict(self.manifest),
            "repo": self.repo,
        }

    def to_json(self) -> str:
        """`to_dict` as JSON with sorted keys."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_dict(cls, source_dict: Mapping[str, Any]) -> DvcDatasetSource:
        """The source whose `to_dict` is `source_dict`."""
        return cls(**source_dict)

    @classmethod
    def from_json(cls, source_json: str) -> DvcDatasetSource:
        """The source whose `to_json` is `source_json`."""
        return cls.from_dict(json.loads(source_json))

    def load(self, workspace: Path | None = None) -> str:
        """Fetch the data, re-hash it, and give the local path of the file or folder.

        It is kept in `.prefixline/fetched/` of the workspace, by content, and hashed again on every call.

        Args:
            workspace: where to look for the repository first; `PREFIXLINE_WORKSPACE` or the current folder
                where it is None.

        Raises:
            WorkspaceError: no repository with the commit is at hand, or DVC cannot give the data.
            IntegrityError: the bytes are not those recorded.
        """
        root = workspace or Path(os.environ.get("PREFIXLINE_WORKSPACE") or Path.cwd())
        target = root / ".prefixline" / "fetched" / self.manifest_digest / PurePosixPath(self.path).name
        if not target.exists():
            repository = str(root) if _knows_commit(root, self.rev) else self.repo
            if repository is None:
                raise WorkspaceError(
                    f"{root}: is not a git repository with the commit {self.rev}, and no remote address was "
                    f"recorded for {self.path}; set PREFIXLINE_WORKSPACE to the workspace the data is from"
                )
            with new_folder(target.parent) as fresh:
                self._fetch(repository, fresh / target.name)
                self._verify(fresh / target.name)
        self._verify(target)
        return str(target)

    def to_dataset(self, workspace: Path | None = None) -> datasets.Dataset:
        """The rows with every column, as they are written. Raises what `load` raises, and DataError."""
        from datasets import Dataset

        return Dataset(read_whole(Path(self.load(workspace))))

    def to_pandas(self, workspace: Path | None = None) -> pandas.DataFrame:
        """The rows as a DataFrame. Raises what `to_dataset` raises."""
        frame: pandas.DataFrame = self.to_dataset(workspace).to_pandas()
        return frame

    def _fetch(self, repository: str, target: Path) -> None:
        """Copy file by file under names checked here: an entry of a `.dir` file may point outside (tried)."""
        from dvc.api import DVCFileSystem
        from dvc.exceptions import DvcException
        from scmrepo.exceptions import SCMError

        try:
            files = DVCFileSystem(repository, rev=self.rev)
            if files.isfile(self.path):
                _copy(files, self.path, target)
                return
            names = [PurePosixPath(name).relative_to(self.path) for name in files.find(self.path)]
            if not names:
                raise WorkspaceError(f"{self.path}: is not in the repository at commit {self.rev}")
            if escaping := [str(name) for name in names if ".." in name.parts]:
                raise IntegrityError(
                    [f"{name}: points outside of {self.path}" for name in escaping],
                    heading=f"The .dir entry of {self.path} at commit {self.rev} was tampered with:",
                )
            for name in names:
                _copy(files, f"{self.path}/{name}", target / name)
        except RecursionError:
            # What DVC's index does with an entry that contains `..` (tried): it never gets to writing.
            raise IntegrityError(
                [f"{self.path}: its .dir entry at commit {self.rev} points outside of it (tampered with)"]
            ) from None
        except (DvcException, SCMError, OSError) as error:
            raise WorkspaceError(
                f"{self.path} at commit {self.rev}: DVC cannot give it from {repository}: {error}; "
                f"run `dvc fetch` there, or bring the remote back that holds md5 {self.md5}"
            ) from error

    def _verify(self, target: Path) -> None:
        if self.manifest is not None:
            verify(target, self.manifest)
        elif (actual := digest(manifest(target))) != self.manifest_digest:
            raise IntegrityError(
                [f"{target}: the manifest's SHA-256 is {actual}, expected {self.manifest_digest}"]
            )


def remote_address(workspace: Path) -> str | None:
    """The address of git's remote `origin` without credentials; None for none, or for a path of this machine."""
    url = git.run(workspace, "config", "--get", "remote.origin.url", ok=(0, 1)).strip()
    if found := re.match(r"^(https?|ssh|git)://(?:(.*)@)?([^/@]+(?:/.*)?)$", url):
        scheme, credentials, rest = found.groups()
        # ssh's user is part of the address; what follows a colon is a password.
        user = credentials.split(":")[0] + "@" if credentials and scheme == "ssh" else ""
        return f"{scheme}://{user}{rest}"
    return url if re.match(r"^[\w.-]+@[\w.-]+:(?!\\)", url) else None


def _knows_commit(root: Path, rev: str) -> bool:
    if not root.is_dir():
        return False
    return git.resolve(root, rev) == rev


def _copy(files: Any, name: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    files.get_file(name, str(target))
