"""`.prefixline/servers.json`: which servers run for a workspace, and whether they still do.

A process is identified by its number and the time it started, because numbers are used again.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pipeline import files

STATE_FILE = "servers.json"


@dataclass(frozen=True)
class ProcessId:
    """A process for as long as it lives: no later process equals it.

    Attributes:
        pid: its number; for a server also the number of its process group.
        started: seconds since the epoch, as the system tells.
    """

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """The living process `pid`; one that has just ended gets the start time 0, and is not alive."""
        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.NoSuchProcess:
            return cls(pid, 0.0)

    def alive(self) -> bool:
        """Whether it still runs (a zombie does not)."""
        try:
            process = psutil.Process(self.pid)
            # The start time is derived from the clock, which may have been set since.
            same = abs(process.create_time() - self.started) < 2
            return same and bool(process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False


@dataclass(frozen=True)
class ServerRecord:
    """One server: its address (a URL, or the fork server's socket) and the leader of its process group."""

    url: str
    process: ProcessId


@dataclass(frozen=True)
class ServersRecord:
    """The content of servers.json.

    Law (tested): `read_state(folder)` after `record.write(folder)` equals `record`.

    Attributes:
        up: the `prefixline up` that started the servers and will end them.
        mlflow: the MLflow server; None where the workspace uses one of the team's own.
        prefect: the Prefect server.
        forks: the fork server (`pipeline.forkserver`), without which all goes on.
        ready: MLflow and Prefect have answered.
    """

    up: ProcessId
    mlflow: ServerRecord | None
    prefect: ServerRecord
    forks: ServerRecord
    ready: bool

    def alive(self) -> bool:
        """Whether MLflow and Prefect still run."""
        return self.prefect.process.alive() and (self.mlflow is None or self.mlflow.process.alive())

    def now_ready(self) -> ServersRecord:
        """The same, with both servers answering."""
        return dataclasses.replace(self, ready=True)

    def write(self, state: Path) -> None:
        """Put it into the folder `state` in one step."""
        files.write_json(state / STATE_FILE, dataclasses.asdict(self))


def read_state(state: Path) -> ServersRecord | None:
    """What the folder `state` records; None when there is nothing, or nothing that can be read."""
    try:
        raw = json.loads((state / STATE_FILE).read_bytes())
        mlflow = None if raw["mlflow"] is None else _server(raw["mlflow"])
        prefect, forks = _server(raw["prefect"]), _server(raw["forks"])
        return ServersRecord(ProcessId(**raw["up"]), mlflow, prefect, forks, bool(raw["ready"]))
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def _server(raw: dict[str, Any]) -> ServerRecord:
    return ServerRecord(str(raw["url"]), ProcessId(**raw["process"]))
