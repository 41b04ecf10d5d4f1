"""MLflow's tables in a PostgreSQL database: made once, however many processes want them.

PostgreSQL changes tables in transactions, so a process killed while it makes them leaves nothing that the next one
cannot finish (MLflow's migrations are one transaction); only two at once would break each other's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline.errors import RegistryError

if TYPE_CHECKING:
    import sqlalchemy

SCHEMES = ("postgresql://", "postgresql+psycopg2://")

_LOCK = int.from_bytes(b"prefixln", "big")
"""Of PostgreSQL's advisory locks: any number that only this package takes."""


def ensure_tables(uri: str, artifact_root: str, timeout: float) -> None:
    """Make MLflow's tables in the database at `uri` where there are none.

    Args:
        artifact_root: URI below which MLflow's default experiment keeps its files.
        timeout: seconds to wait for an answer; MLflow itself would try again and again, for more than a minute.

    Raises:
        RegistryError: the address is none, or the driver is not installed.
        sqlalchemy.exc.SQLAlchemyError, mlflow.exceptions.MlflowException: the server does not answer, lets nobody in,
            or lacks the right to make tables.
    """
    import sqlalchemy

    try:
        engine = sqlalchemy.create_engine(
            _url(uri),
            poolclass=sqlalchemy.NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args={"connect_timeout": math.ceil(timeout)},
        )
    except ModuleNotFoundError as error:
        raise RegistryError(
            f"MLflow on PostgreSQL needs the driver {error.name}, which is not installed: "
            "pip install 'prefixline[postgres]'"
        ) from error
    with engine.connect() as connection:
        if _made(connection):
            return
        # Held by this connection, and let go of with it, whatever ends the process.
        connection.execute(sqlalchemy.text("select pg_advisory_lock(:lock)"), {"lock": _LOCK})
        if not _made(connection):
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            SqlAlchemyStore(uri, artifact_root).engine.dispose()


def _url(uri: str) -> sqlalchemy.URL:
    import sqlalchemy

    try:
        url = sqlalchemy.make_url(uri)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        url = None
    if url is None or "@" in (url.host or ""):
        # Neither the address nor the error is told: an unquoted password may be taken for a host or a port.
        raise RegistryError(
            "this PostgreSQL address of MLflow cannot be read; expected postgresql://USER@HOST:PORT/DATABASE, and a "
            "password in it with %40, %3A and %2F for @, : and /"
        )
    return url


def _made(connection: sqlalchemy.Connection) -> bool:
    """Whether MLflow's migrations have run: they are one transaction, and this table is part of it."""
    found = connection.exec_driver_sql("select to_regclass('alembic_version') is not null").scalar_one()
    return bool(found)
