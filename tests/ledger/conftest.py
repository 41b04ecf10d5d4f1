"""The stores that the ledger is tried on: every test on sqlite, and with `make test-postgres` on PostgreSQL too."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.register.registry import Registry
from tests import mlflow_world


@pytest.fixture(scope="session", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def store(request: pytest.FixtureRequest) -> mlflow_world.Store:
    """The kind of database that MLflow is on."""
    kind: mlflow_world.Store = request.param
    return kind


@pytest.fixture
def registry(store: mlflow_world.Store, tmp_path: Path) -> Registry:
    """MLflow directly on an empty database."""
    return mlflow_world.database(tmp_path, store)
