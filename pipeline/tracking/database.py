"""The making of MLflow's SQLite database: whole, or not at all.

MLflow makes its tables one after the other in the file itself. A process killed on the way leaves a database that
MLflow can neither use nor finish, and two processes that do it at once break each other's.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from pipeline.errors import RegistryError
from pipeline.locks import exclusive

_SQLITE = b"SQLite format 3\0"


def ensure_database(path: Path, artifact_root: str) -> None:
    """Make MLflow's database at `path` where there is none.

    Args:
        artifact_root: URI below which MLflow's default experiment keeps its files.

    Raises:
        RegistryError: there is another kind of file.
        OSError: the disk is full or not writable; then there is still none.
        sqlalchemy.exc.SQLAlchemyError, mlflow.exceptions.MlflowException: as `OSError`, found by them.
    """
    with exclusive(path.with_name(f"{path.name}.lock")):
        if not path.exists():
            _make(path, artifact_root)
            return
    # MLflow itself would try a file that is no database again and again, for most of a minute.
    with path.open("rb") as file:
        start = file.read(len(_SQLITE))
    if start not in (b"", _SQLITE):
        raise RegistryError(
            f"{path}: is not an SQLite database; restore it from a copy. Moving it away starts a new, empty registry"
        )


def _make(path: Path, artifact_root: str) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for left in path.parent.glob(
        f".{path.name}.*"
    ):  # a killed process's; we hold the lock, so nobody is in it
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        fresh = Path(scratch) / path.name
        store = SqlAlchemyStore(f"sqlite:///{fresh}", artifact_root)
        store.engine.dispose()
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        fresh.replace(path)
