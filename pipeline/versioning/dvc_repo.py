"""DVC inside this process, quietly and with errors of ours.

`dvc.repo.Repo` takes 0.5 s to import and open, and 0.02 s from then on; the command line takes 1 s each time. It is
used for what is short and alone under the repository's lock; experiments run in a process of their own.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.environment import SWITCHES
from pipeline.errors import WorkspaceError


def files_of(data_path: str) -> tuple[str, str, str]:
    """What goes into git for the data at `data_path`: DVC's file, our manifest, and the folder's .gitignore."""
    path = PurePosixPath(data_path)
    return f"{path}.dvc", f"{path}.manifest.json", str(path.parent / ".gitignore")


@contextmanager
def opened(root: Path) -> Iterator[Any]:
    """The DVC repository at `root`, open; each call on it waits for DVC's lock instead of giving up after 3 s.

    Yields:
        A `dvc.repo.Repo`.

    Raises:
        WorkspaceError: anything DVC refuses, with its words; or the disk does.
    """
    os.environ.update({name: value for name, value in SWITCHES.items() if name.startswith("DVC_")})
    from dvc.exceptions import DvcException
    from dvc.logger import set_loggers_level
    from dvc.repo import Repo

    # INFO shows DVC's progress bars. What it logs as errors is in the error that is raised.
    level = logging.INFO if sys.stderr.isatty() else logging.CRITICAL
    try:
        with set_loggers_level(level), Repo(str(root), _wait_for_lock=True) as repo:
            repo.scm_context.quiet = True  # no "to track the changes with git, run": that is our job
            yield repo
    except (DvcException, OSError) as error:
        raise WorkspaceError(f"{root}: DVC stopped: {_chain(error)}") from error


def _chain(error: BaseException) -> str:
    """The messages of an error and its causes; DVC's outer ones often say just that something failed."""
    messages: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        if str(cause) and str(cause) not in messages:
            messages.append(str(cause))
        cause = cause.__cause__
    return ": ".join(messages) or type(error).__name__


def init(root: Path, *, remote_folder: str) -> None:
    """`dvc init` in the git repository `root`, with a verifying default remote in `root / remote_folder`.

    Raises:
        WorkspaceError: DVC refused.
    """
    os.environ.update({name: value for name, value in SWITCHES.items() if name.startswith("DVC_")})
    from dvc.exceptions import DvcException
    from dvc.logger import set_loggers_level
    from dvc.repo import Repo

    try:
        with set_loggers_level(logging.ERROR):
            Repo.init(str(root)).close()
    except (DvcException, OSError) as error:
        raise WorkspaceError(f"{root}: cannot be made a DVC repository: {_chain(error)}") from error
    (root / ".dvc" / "config").write_text(
        "[core]\n    analytics = false\n    check_update = false\n    remote = local\n"
        f"['remote \"local\"']\n    url = ../{remote_folder}\n    verify = true\n"
    )


def require_verifying_remote(root: Path) -> None:
    """Refuse a workspace whose default DVC remote is missing, or whose objects DVC takes over unchecked.

    Raises:
        WorkspaceError: with the command that mends it.
    """
    from dvc.config import Config, ConfigError

    try:
        config = Config(str(root / ".dvc"))
    except ConfigError as error:
        raise WorkspaceError(f"{root / '.dvc' / 'config'}: {error}") from error
    name = config["core"].get("remote")
    if not name or name not in config["remote"]:
        raise WorkspaceError(
            f"{root}: has no default DVC remote, so a data set could not be fetched again by its hash; "
            "add one with `dvc remote add --default NAME URL` and `dvc remote modify NAME verify true`, and commit"
        )
    if not config["remote"][name].get("verify"):
        raise WorkspaceError(
            f"{root}: the DVC remote {name!r} does not verify, so DVC would take tampered objects from it without a "
            f"word; run `dvc remote modify {name} verify true` and commit .dvc/config"
        )


def push(repo: Any, hashes: Collection[str]) -> None:
    """Copy the objects `hashes` (md5, with `.dir` for folders) to the default remote; those it has are skipped.

    A folder's listing goes last, after the files it lists, so that a remote which has it has them all.

    Raises:
        WorkspaceError: some did not arrive.
    """
    remote = repo.cloud.get_remote_odb()
    listings = {value for value in hashes if value.endswith(".dir") and not remote.exists(value)}
    inside = {
        entry["md5"]
        for value in listings
        for entry in json.loads(Path(repo.cache.local.oid_to_path(value)).read_bytes())
    }
    single = {value for value in hashes if not value.endswith(".dir")}
    for values in (inside | single, listings):
        _push(repo, values)


def _push(repo: Any, hashes: Iterable[str]) -> None:
    from dvc_data.hashfile.hash_info import HashInfo

    failed = repo.cloud.push([HashInfo("md5", value) for value in sorted(hashes)]).failed
    if failed:
        names = ", ".join(sorted(str(info.value) for info in failed))
        raise WorkspaceError(
            f"{repo.root_dir}: pushing to the DVC remote failed for {names}; check that the remote can be reached "
            "and has room (`dvc push` says more)"
        )
