"""Starting the processes that train together on this machine, with torchrun's own launcher.

Each is a fresh Python that finds the others by a file, and talks to them on the loopback interface alone: no port is
chosen beforehand, and nothing listens to the network. torchrun's launcher puts each process into a session of its own,
where neither Ctrl-C nor a kill of this process would reach it; Ctrl-C and SIGTERM are passed on by the launcher, and the
end of this process shows in a pipe that all of them watch.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipeline.errors import LostProcessError, TrainingError, TrainingInterruptedError
from pipeline.forkserver import FORKSERVER
from pipeline.train.launched import ALIVE
from pipeline.train.process_group import RENDEZVOUS

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

GRACE_SECONDS = 20
"""How long processes may take to write a checkpoint after a signal, before they are killed."""


def launch(processes: int, module: str, arguments: Sequence[str], *, threads: int | None) -> None:
    """Run `python -m module arguments` in so many processes, to their end.

    Args:
        module: begins with `launched.end_with_launcher`, and ends an error with `launched.report`.
        threads: CPU threads, shared out among the processes; torch's own number for None.

    Raises:
        TrainingInterruptedError: SIGINT, SIGTERM or another signal came, here or to one of them.
        TrainingError: one of them failed, with its message; all have ended.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory(prefix="prefixline-") as name:
        folder = Path(name)
        pipe = folder / "alive"
        os.mkfifo(pipe, 0o600)
        ours = os.open(pipe, os.O_RDWR | os.O_CLOEXEC)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id="prefixline",
            rdzv_backend="c10d",
            rdzv_endpoint=str(folder / "launcher"),
            rdzv_configs={"store_type": "file"},
            local_addr="127.0.0.1",
            max_restarts=0,  # running again is the way to go on from a checkpoint
            shutdown_timeout=GRACE_SECONDS,
            logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs")),
        )
        environment = {
            ALIVE: str(pipe),
            RENDEZVOUS: (folder / "processes").as_uri(),
            "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
            "OMP_NUM_THREADS": str(max(1, (threads or torch.get_num_threads()) // processes)),
        }
        try:
            with _environment(environment), _signals_kept(), _quiet():
                elastic_launch(config, sys.executable)("-m", module, *arguments)
        except ChildFailedError as error:
            raise _reported(folder) or _unreported(error.failures, processes) from None
        except SignalException as error:
            raise _reported(folder) or TrainingInterruptedError(
                f"stopped by {error.sigval.name} before the first step, or in the middle of one; run the same command "
                "again and training goes on from the newest checkpoint"
            ) from None
        finally:
            os.close(ours)


def _reported(logs: Path) -> TrainingError | None:
    """The error of the process that failed by itself, if it reported one: the others failed since it was gone."""
    for file in sorted(logs.rglob("error.json")):
        kind, _, text = json.loads(file.read_text(encoding="utf-8"))["message"]["message"].partition(": ")
        if kind == TrainingInterruptedError.__name__:
            return TrainingInterruptedError(text)
        if kind != LostProcessError.__name__:
            return TrainingError(text)
    return None


def _unreported(failures: Mapping[int, ProcessFailure], processes: int) -> TrainingError:
    """How the process ended that the others lost, and could not say why."""
    silent = [rank for rank in sorted(failures) if not isinstance(failures[rank].message, dict)]
    # The launcher ends by SIGTERM those that are left.
    silent.sort(key=lambda rank: failures[rank].exitcode == -signal.SIGTERM)
    rank = (silent or sorted(failures))[0]
    failure = failures[rank]
    if failure.exitcode < 0:
        how = f"was ended by {failure.signal_name()}"
        how += " (out of memory, where nobody sent it)" if failure.exitcode == -signal.SIGKILL else ""
    else:
        how = f"ended with status {failure.exitcode}; what it printed stands above"
    return TrainingError(
        f"process {rank + 1} of {processes} {how}. Run the same command again and training goes on from the newest "
        "checkpoint"
    )


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """`os.environ` with `variables`, and without the fork server: the launcher passes it on whole."""
    before = dict(os.environ)
    os.environ.update(variables)
    os.environ.pop(FORKSERVER, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """The launcher sets its own handlers and leaves them."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the launcher's own lines on how it ends what: the error that is raised says it."""
    logger = logging.getLogger("torch.distributed.elastic")
    propagate, nowhere = logger.propagate, logging.NullHandler()
    logger.addHandler(nowhere)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(nowhere)
        logger.propagate = propagate
