"""The checked connection to MLflow, and its errors as ours."""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import RegistryError, UnreachableError
from pipeline.tracking import postgresql
from pipeline.tracking.database import ensure_database

if TYPE_CHECKING:
    from mlflow import MlflowClient

MLFLOW_URI = "PREFIXLINE_MLFLOW_URI"
"""The environment variable that says where a workspace's MLflow is, if not in the workspace: an address for `connect`.

Not MLflow's own MLFLOW_TRACKING_URI: what a shell exports for other work must not lead a workspace's versions away.
"""

BOUNDS: Mapping[str, str] = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # It would write a run's address to stdout, between the lines of --json.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # It would cut a param's value at 6,000 characters without a word.
    "MLFLOW_TRUNCATE_LONG_VALUES": "false",
    # It would run `uv export` on whatever lies in the current folder.
    "MLFLOW_UV_AUTO_DETECT": "false",
}
"""Set by `connect` where the user has not set them: at most about 10 s for a server that is not there."""


@dataclass(frozen=True)
class Registry:
    """A checked connection to MLflow. Made by `connect`; MLflow itself is imported when `client` is first used.

    Attributes:
        uri: tracking and registry address; may hold a password, so it is `shown` that messages name.
        artifact_root: URI below which new experiments keep their files; None leaves that to the server.
    """

    uri: str = field(repr=False)
    artifact_root: str | None = None

    @property
    def shown(self) -> str:
        """`uri` with its password, if it has one, as `***`."""
        return without_password(self.uri)

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's client for `uri`, independent of its global settings."""
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def experiment(self, name: str) -> str:
        """The id of the experiment `name`, made where there is none.

        Raises:
            RegistryError: it is deleted in MLflow.
        """
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            where = None if self.artifact_root is None else f"{self.artifact_root}/{name}"
            try:
                created: str = self.client.create_experiment(name, artifact_location=where)
                return created
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self.client.get_experiment_by_name(name)  # another process was first
        if found.lifecycle_stage != "active":
            raise RegistryError(
                f"experiment {name!r} is deleted in MLflow; restore it: "
                f"mlflow experiments restore --experiment-id {found.experiment_id}"
            )
        experiment_id: str = found.experiment_id
        return experiment_id

    def put(self, write: Callable[..., object], *arguments: Any, **named: Any) -> None:
        """Do a write of MLflow's that can be repeated (a tag, an alias, params, inputs): once more if it fails.

        Two processes that write one of these for the first time at once both find nothing and both insert, and
        MLflow fails in one of them (tried). Now that it is there, the same write succeeds; any other fault comes
        again, as does another value for a param.
        """
        from mlflow.exceptions import MlflowException

        try:
            write(*arguments, **named)
        except MlflowException:
            write(*arguments, **named)

    def activate(self) -> None:
        """Make `uri` MLflow's global address, for `mlflow.pyfunc.load_model("models:/...")` in this process."""
        import mlflow

        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Turn what MLflow raises while `doing` something into RegistryError or UnreachableError."""
        import requests
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import OperationalError, SQLAlchemyError

        try:
            yield
        except MlflowException as error:
            # http_request raises inside an `except`, so what happened on the wire is the context.
            if isinstance(error.__context__, requests.RequestException) or error.error_code in _TRANSIENT:
                raise _unreachable(self.shown, f"{doing}: {error}") from error
            raise RegistryError(f"{doing}: MLflow at {self.shown} refused: {error}") from error
        except SQLAlchemyError as error:  # a file that is no database, found before MLflow wraps anything
            if isinstance(error, OperationalError) and not self.uri.startswith("sqlite:"):
                raise _unreachable(self.shown, f"{doing}: {error}") from error
            raise RegistryError(f"{doing}: MLflow cannot use {self.shown}: {error}") from error
        except requests.RequestException as error:
            raise _unreachable(self.shown, f"{doing}: {error}") from error
        except OSError as error:
            raise RegistryError(f"{doing}: {error}; nothing was registered, run it again") from error


def pages(search: Callable[..., Any], *arguments: Any, **named: Any) -> Iterator[Any]:
    """Everything that one of the client's searches finds, page by page."""
    token = None
    while token is None or token:
        page = search(*arguments, page_token=token, **named)
        yield from page
        token = page.token or ""


_TRANSIENT = {"TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"}


def connect(uri: str, *, artifact_root: str | None = None, timeout: float = 5.0) -> Registry:
    """A connection to MLflow at `uri`, checked quickly.

    An sqlite database is created on first use; in a PostgreSQL database, MLflow's tables are.

    Args:
        uri: http://, https://, postgresql:// (libpq's form; a password may also come from PGPASSWORD or ~/.pgpass),
            or sqlite:/// and an absolute path.
        artifact_root: URI below which new experiments keep their files. Needed for a database, where MLflow would
            otherwise use the current folder; None leaves it to a server.
        timeout: seconds to wait for a server's health page, or for PostgreSQL.

    Raises:
        UnreachableError: no MLflow answers there.
        RegistryError: the address or the database is not one MLflow can use.
    """
    for name, value in BOUNDS.items():
        os.environ.setdefault(name, value)
    if uri.startswith(("http://", "https://")):
        if "@" in uri.split("/")[2]:
            # MLflow puts the whole address into its errors.
            raise RegistryError(
                f"MLflow address {without_password(uri)!r}: expected one without user and password; set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, which MLflow itself reads"
            )
        _check_health(uri, timeout)
        return Registry(uri.rstrip("/"), artifact_root)
    registry = Registry(uri, artifact_root)
    if not uri.startswith(("sqlite:////", *postgresql.SCHEMES)):
        raise RegistryError(
            f"MLflow address {registry.shown!r}: expected http://, https://, postgresql:// or sqlite:////ABSOLUTE/FILE"
        )
    if artifact_root is None:
        raise RegistryError(f"MLflow at {registry.shown}: say where its artifacts are to lie (artifact_root)")
    if uri.startswith(postgresql.SCHEMES):
        with registry.errors("opening MLflow's database"):
            postgresql.ensure_tables(uri, artifact_root, timeout)
        return registry
    database = Path(uri.removeprefix("sqlite:///"))
    with registry.errors(f"opening MLflow's database {database}"):
        database.parent.mkdir(parents=True, exist_ok=True)
        ensure_database(database, artifact_root)
    return registry


def without_password(uri: str) -> str:
    """An address as messages may name it: with `***` for its password, or for a user of HTTP without one, which is a token."""
    shown = re.sub("(://[^:/]*):.*@", r"\1:***@", uri)
    shown = re.sub(r"(https?://)[^/:@\s]+@", r"\1***@", shown)
    return re.sub("([?&][^=&]*password)=[^&]*", r"\1=***", shown)


def _check_health(uri: str, timeout: float) -> None:
    url = f"{uri.rstrip('/')}/health"
    try:
        with urllib.request.urlopen(url, timeout=timeout) as reply:  # noqa: S310 (http and https only, by connect)
            text = reply.read(64).decode(errors="replace")
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise _unreachable(uri, str(error)) from error
    if text.strip() != "OK":
        raise _unreachable(uri, f"{url} answered {text!r}; expected 'OK'")


def _unreachable(uri: str, what: str) -> UnreachableError:
    if not uri.startswith("http"):
        return UnreachableError(
            f"MLflow's database {uri} cannot be used now ({what}). If another process holds it, run this again."
            if uri.startswith("sqlite:")
            else f"MLflow's database {uri} does not answer, or lets nobody in ({what})"
        )
    return UnreachableError(
        f"MLflow at {uri} does not answer ({what}). If it is the workspace's own, see "
        ".prefixline/logs/mlflow.log, and start it again with `prefixline up`."
    )
