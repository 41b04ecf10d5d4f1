"""One world for all tests of this folder; who changes it puts it back."""

from __future__ import annotations

import pytest

from tests.export import world
from tests.export.world import World


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    return world.make(tmp_path_factory.mktemp("export"))
