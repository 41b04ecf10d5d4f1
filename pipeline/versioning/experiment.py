"""One retraining's computation: the stages of dvc.yaml as one DVC experiment, in a copy of the commit.

The copy is a `git clone --shared` below `.prefixline/experiments` that uses the workspace's DVC cache; in it runs
`dvc exp run`, and the experiment's commit is then fetched into the workspace. Not `dvc exp run --temp`, whose queue
all processes of a repository share: after a kill it runs what the killed process had queued, in the environment of the
next one (tried); and to queue, it stashes and resets the files the user is working on. Here nothing is shared but
DVC's cache and git's objects, both of which are written by rename.
"""

from __future__ import annotations

import codecs
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.environment import SWITCHES
from pipeline.errors import ExperimentError, WorkspaceError
from pipeline.locks import exclusive
from pipeline.versioning import dvc_repo, git
from pipeline.versioning.stored import RECORDS, check_cached, check_outputs
from pipeline.versioning.workspace import Workspace, read_json_at

STAGES = tuple(RECORDS)
GRACE_SECONDS = 30.0
"""How long the stages may take to write a checkpoint after Ctrl-C before they are killed."""
_TERMINAL_CODE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_TAIL_LINES = 20


@dataclass(frozen=True)
class Experiment:
    """A finished DVC experiment.

    Attributes:
        name: as `dvc exp show` lists it.
        commit: its git commit, which holds dvc.lock, pins, params and the stages' records.
        baseline: the commit it was run from.
        ran: the stages that were computed just now; the others came from DVC's run cache, or the whole experiment
            had been finished earlier.
    """

    name: str
    commit: str
    baseline: str
    ran: tuple[str, ...]


def anchor(name: str, run_key: str) -> str:
    """The git reference under which the experiment is kept, where `dvc exp remove` and `dvc exp gc` do not look."""
    return f"refs/prefixline/{name}/{run_key}"


def find_experiment(workspace: Workspace, name: str, run_key: str) -> Experiment | None:
    """The finished experiment with this run key, or None."""
    commit = git.resolve(workspace.root, anchor(name, run_key))
    if commit is None:
        return None
    baseline = git.resolve(workspace.root, f"{commit}^")
    assert baseline is not None
    return Experiment(_name(name, run_key), commit, baseline, ())


def run_experiment(
    workspace: Workspace,
    name: str,
    run_key: str,
    env: Mapping[str, str],
    on_output: Callable[[str], None],
    *,
    baseline: str | None = None,
) -> Experiment:
    """Run prepare, train and evaluate of the prefix `name`, or return the experiment if that was done before.

    Retrainings of one prefix wait for each other; those of different prefixes run side by side. A run that was killed
    leaves nothing that counts: finished stages come from DVC's run cache the next time.

    Args:
        env: added to the environment of the stages.
        on_output: gets the stages' own output as it comes, in pieces that need not be whole lines.
        baseline: the commit to start from, as `write_pins` returned it; HEAD where None.

    Raises:
        ExperimentError: a stage failed; with its own last lines.
        IntegrityError: DVC's cache does not hold the data that was pinned.
        WorkspaceError: git or DVC could not do their part.
    """
    folder = workspace.state / "experiments" / name
    wait = f"another retraining of {name} is running in this workspace; waiting for it\n"
    with exclusive(folder.with_suffix(".lock"), waiting=lambda: on_output(wait)) as lock:
        found = find_experiment(workspace, name, run_key)
        if found is not None:
            return found
        start = git.resolve(workspace.root, baseline or "HEAD")
        if start is None:
            raise WorkspaceError(f"{workspace.root}: has no commit {baseline or 'HEAD'}")
        _check_data(workspace, name, start)
        shutil.rmtree(folder, ignore_errors=True)  # a killed run's; we hold the lock, so nobody is in it
        try:
            copy = copy_commit(workspace, folder, start)
            experiment = _name(name, run_key)
            log = folder / "dvc.log"
            targets = [f"{stage}@{name}" for stage in STAGES]
            arguments = ["exp", "run", "--name", experiment, "--message", f"Retrain {name}", *targets]
            status, tail = run_dvc(workspace, copy, log, arguments, env, on_output, lock)
            said = log.read_text(errors="replace")
            if status != 0:
                raise ExperimentError(explain(name, status, tail, said))
            ran = tuple(stage for stage in STAGES if f"Running stage '{stage}@{name}'" in said)
            source = f"refs/exps/{start[:2]}/{start[2:]}/{experiment}"
            commit = _fetch_commit(workspace, copy, source)
            for stage in STAGES:
                if stage not in ran:
                    check_outputs(workspace, commit, name, stage)
            # Last, since this is what makes it count as finished.
            git.run(workspace.root, "update-ref", anchor(name, run_key), commit)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return Experiment(experiment, commit, start, ran)


def _name(name: str, run_key: str) -> str:
    return f"{name}-{run_key[:12]}"


def _check_data(workspace: Workspace, name: str, commit: str) -> None:
    """Hash the pinned data in DVC's cache before the copy is filled from there: DVC would not notice tampering."""
    pins = read_json_at(workspace, commit, f"pins/{name}.json")
    with dvc_repo.opened(workspace.root) as repo:
        check_cached(repo, pins["data"]["md5"], pins["data"]["manifest"], f"the data of {name}")


def copy_commit(workspace: Workspace, folder: Path, commit: str) -> Path:
    """A clone of the workspace at `commit` in `folder/copy`, with its own DVC state and the workspace's cache.

    Args:
        folder: made here; it also gets DVC's own state and the interpreter that the stages are started with.
    """
    with dvc_repo.opened(workspace.root) as repo:
        cache = repo.cache.local_cache_dir
    folder.mkdir(parents=True)
    copy = folder / "copy"
    no_hooks = ("-c", "core.hooksPath=/dev/null")
    git.run(
        workspace.root, *no_hooks, "clone", "-q", "--shared", "--no-checkout", "--no-tags", ".", str(copy)
    )
    git.run(copy, *no_hooks, "checkout", "-q", "--detach", commit)
    user, address = git.identity(workspace.root)
    git.run(copy, "config", "user.name", user)
    git.run(copy, "config", "user.email", address)
    git.run(copy, "config", "commit.gpgsign", "false")
    (copy / ".dvc" / "config.local").write_text(
        # Links spare the copying of the data; state in the copy goes when the copy goes.
        f"[core]\n    site_cache_dir = {folder / 'site'}\n    check_update = false\n    analytics = false\n"
        f'[cache]\n    dir = {cache}\n    type = "reflink,hardlink,copy"\n'
    )
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return copy


def run_dvc(
    workspace: Workspace,
    copy: Path,
    log: Path,
    arguments: list[str],
    env: Mapping[str, str],
    on_output: Callable[[str], None],
    lock: int,
) -> tuple[int, str]:
    """DVC in a process group of its own; (exit status, the end of what the stages printed).

    Args:
        copy: where, as `copy_commit` made it.
        log: the file that gets what DVC itself says.
        env: added to the environment of the stages; its PREFIXLINE_WORKSPACE takes the place of `workspace`.
        lock: the descriptor of a lock that is held as long as DVC or a stage lives.

    Any exception here, Ctrl-C's or `on_output`'s, is passed on after the group has ended.
    """
    environment = {
        **{name: value for name, value in git.environment().items() if not name.startswith("DVC_")},
        **SWITCHES,
        "PYTHONUNBUFFERED": "1",
        # The installed code, whose digest is pinned, and not what a commit of this repository has in its copy.
        "PYTHONSAFEPATH": "1",
        "PREFIXLINE_WORKSPACE": str(workspace.root),
        **env,
        "PATH": os.pathsep.join([str(copy.parent / "bin"), os.environ.get("PATH", os.defpath)]),
        "SHELL": "/bin/sh",  # DVC runs commands in the user's own, which may be fish, or nologin for a service
    }
    alive, ours = os.pipe()
    command = [
        sys.executable,
        "-m",
        "pipeline.versioning.experiment_process",
        str(alive),
        str(log),
        *arguments,
    ]
    with os.fdopen(alive, "rb") as theirs, os.fdopen(ours, "wb"):
        process = subprocess.Popen(
            command,
            cwd=copy,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(theirs.fileno(), lock),
            start_new_session=True,
        )
        try:
            tail = _relay(process, on_output)
            return process.wait(), tail
        except BaseException:
            _stop(process)
            raise


def _relay(process: subprocess.Popen[bytes], on_output: Callable[[str], None]) -> str:
    assert process.stdout is not None
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    tail = ""
    while piece := os.read(process.stdout.fileno(), 65536):
        text = decoder.decode(piece)
        tail = (tail + text)[-65536:]
        on_output(text)
    return tail


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C for the whole group, so that training saves a checkpoint; after `GRACE_SECONDS`, an end."""
    try:
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGINT)
            process.communicate(timeout=GRACE_SECONDS)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _fetch_commit(workspace: Workspace, copy: Path, reference: str) -> str:
    quietly = ("-c", "gc.auto=0", "fetch", "-q", "--no-tags", "--no-write-fetch-head")
    git.run(workspace.root, *quietly, str(copy), f"+{reference}:{reference}")
    commit = git.resolve(workspace.root, reference)
    assert commit is not None
    return commit


def explain(name: str, status: int, tail: str, said: str) -> str:
    """The failed stage and its own words; DVC's only where that stage did not speak."""
    failed = re.search(r"failed to reproduce '(\w+)@", said)
    where = f"stage {failed[1]} of {name} failed" if failed else f"the experiment of {name} failed"
    plain = _TERMINAL_CODE.sub("", tail).replace("\r\n", "\n")
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in plain.split("\n")]
    lines = [line for line in lines if line]
    marked = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    if marked:
        return "\n  ".join(
            [f"{where}: {lines[marked[-1]].removeprefix('error: ')}", *lines[marked[-1] + 1 :]]
        )
    began = failed and f"Running stage '{failed[1]}@{name}'" in said
    if began and lines:
        return "\n  ".join([f"{where}; it printed last:", *lines[-_TAIL_LINES:]])
    faults = [
        line for line in said.splitlines() if line.startswith(("ERROR", "WARNING"))
    ] or said.splitlines()
    return "\n  ".join([f"{where} (DVC ended with status {status}):", *faults[-_TAIL_LINES:]])
