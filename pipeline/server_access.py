"""Where a workspace's MLflow and Prefect are to be found, with servers or without, and whether they answer.

All of their data lies in the workspace's `.prefixline/`, so the same databases serve with and without
servers: `endpoints` says where to connect right now. `PREFIXLINE_MLFLOW_URI` names another place for MLflow's: a
PostgreSQL database, which serves with and without a server likewise, or a server of the team's own. Artifacts are recorded by their `file:` URI rather than
as `mlflow-artifacts:/`, because the latter can only be read through a running server, while a file URI works
directly, and through the server too (client and server share the disk). Either may come first.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.environment import quiet_environment
from pipeline.errors import UnreachableError
from pipeline.ports import HOST
from pipeline.server_state import ServersRecord, read_state
from pipeline.tracking import connection
from pipeline.tracking.connection import MLFLOW_URI, Registry

_LOG_LINES = 15
_OTHER_SERVERS = (
    "PREFECT_API_URL",
    "PREFECT_API_KEY",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_PROFILE",
    "PREFECT_API_DATABASE_CONNECTION_URL",
)


@dataclass(frozen=True)
class Endpoints:
    """Where a workspace's MLflow and Prefect are to be found now.

    Attributes:
        mlflow_uri: the tracking and registry URI: a server's `http:` address, or the database's, which may hold a
            password.
        prefect_api_url: the server's API, or None: a command that needs one then starts its own (see
            `pipeline.private_prefect`), which runs no schedules.
        forkserver: the socket of the process that runs stages without importing anything, or None.
        artifact_root: the `file:` URI below which every experiment must put its artifacts, whether created
            directly or over HTTP; pass `artifact_location=f"{artifact_root}/{experiment}"` at creation. None where a
            server of the team's own keeps them, which does not share this disk.
    """

    mlflow_uri: str = field(repr=False)
    prefect_api_url: str | None
    forkserver: str | None
    artifact_root: str | None


def endpoints(workspace: Path) -> Endpoints:
    """The servers of `workspace` if they run, else its databases. Asks no server; see `running`.

    While `prefixline up` runs with an MLflow server, that decides, whatever `PREFIXLINE_MLFLOW_URI` says here.
    """
    workspace = workspace.resolve()
    servers = running(workspace)
    root = (workspace / ".prefixline/mlartifacts").as_uri()
    prefect = None if servers is None else f"{servers.prefect.url}/api"
    forks = servers.forks.url if servers is not None and servers.forks.process.alive() else None
    if servers is not None and servers.mlflow is not None:
        return Endpoints(servers.mlflow.url, prefect, forks, root)
    mlflow = mlflow_uri(workspace)
    return Endpoints(mlflow, prefect, forks, None if is_server(mlflow) else root)


def connect(workspace: Path) -> Registry:
    """The MLflow of `workspace`, by its server or its database.

    Raises:
        RegistryError, UnreachableError: as `pipeline.tracking.connection.connect`.
    """
    where = endpoints(workspace)
    return connection.connect(where.mlflow_uri, artifact_root=where.artifact_root)


def mlflow_uri(workspace: Path) -> str:
    """Where MLflow's data is, without the workspace's own MLflow server: `PREFIXLINE_MLFLOW_URI`, else its own file."""
    return os.environ.get(MLFLOW_URI) or f"sqlite:///{workspace.resolve()}/.prefixline/mlflow.db"


def is_server(uri: str) -> bool:
    """Whether MLflow's address is a server's, rather than a database's."""
    return uri.startswith(("http://", "https://"))


def running(workspace: Path) -> ServersRecord | None:
    """What `servers.json` records, if it is complete and all of its processes are alive; None if stale."""
    state = read_state(workspace.resolve() / ".prefixline")
    return state if state is not None and state.ready and state.alive() else None


def prefect_api(workspace: Path) -> str | None:
    """The address of the workspace's Prefect server, which has just answered; None where none is up.

    Raises:
        UnreachableError: its process runs, but it does not answer.
    """
    url = endpoints(workspace).prefect_api_url
    if url is not None and not answers(f"{url}/ready"):
        raise UnreachableError(
            f"the Prefect server at {url} does not answer; see .prefixline/logs/prefect.log, and start it again "
            "with `prefixline up`"
        )
    return url


def environment(workspace: Path) -> dict[str, str]:
    """The environment variables under which Prefect keeps to this workspace, quietly.

    Runs' own log lines go to Prefect's API (its pages show them); the terminal only sees warnings.
    Creates the folder that `PREFECT_HOME` names, because Prefect makes no parents.
    """
    workspace = workspace.resolve()
    home = workspace / ".prefixline/prefect"
    home.mkdir(parents=True, exist_ok=True)
    api_url = endpoints(workspace).prefect_api_url
    return {
        **quiet_environment(offline=False),
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home / 'prefect.db'}",
        **({"PREFECT_API_URL": api_url} if api_url else {}),
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false" if api_url else "true",
        # 20 seconds by default, which the first start's migrations exceed on a busy machine.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        # In memory by default: a server restarted during a run would never free that run's slot.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_LEVEL": "INFO",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
        "PREFECT_LOGGING_COLORS": "false",
        "PREFECT_CLI_COLORS": "false",
        "PREFECT_CLI_PROMPT": "false",
        "NO_PROXY": _without_proxy(os.environ.get("NO_PROXY", os.environ.get("no_proxy", ""))),
    }


def enter(workspace: Path) -> None:
    """Put `environment(workspace)` into this process, before it imports Prefect.

    Addresses of other Prefect servers that the user's shell exports are taken out: the workspace's runs
    belong into its own database. (Set to the empty string, Prefect would take them for an address.)
    """
    for name in _OTHER_SERVERS:
        os.environ.pop(name, None)
    os.environ.update(environment(workspace))


def answers(url: str) -> bool:
    """Whether `url` gives status 200. Never through a proxy: it is this machine."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def tail(log: Path) -> str:
    """The last lines of a server's log, for a message."""
    lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
    return "\n".join(f"  {line}" for line in lines) or "  (empty)"


def _without_proxy(current: str) -> str:
    hosts = [host for host in current.split(",") if host]
    return ",".join(hosts + [host for host in (HOST, "localhost") if host not in hosts])
