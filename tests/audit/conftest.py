"""One world for all audits of this folder: making it takes a minute, putting it back a moment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.audit import verify_world
from tests.audit.verify_world import World
from tests.line import Line, make_line


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Path]:
    """Two versions of alpha, whose data grew, and one of beta, which went on from alpha's first; and a copy of all."""
    world = verify_world.make(tmp_path_factory.mktemp("audit") / "workspace")
    first = world.retrain("alpha")
    world.add_rows(5)
    world.retrain("alpha")
    start = {
        "adapter_digest": first.tags["prefixline.adapter_digest"],
        "prefix": "alpha",
        "version": first.version,
    }
    world.retrain("beta", warm_start=start)
    copy = tmp_path_factory.mktemp("copy") / "workspace"
    world.save(copy)
    return world, copy


@pytest.fixture
def world(made: tuple[World, Path]) -> Iterator[World]:
    """The world, to do anything with."""
    yield made[0]
    made[0].restore(made[1])


@pytest.fixture(scope="session")
def untouched(made: tuple[World, Path]) -> World:
    """The world, to look at and to leave as it is."""
    return made[0]


@pytest.fixture(scope="session")
def trained_line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """A real workspace whose prefix `words` has been retrained once: version 1, which nobody may change or remove."""
    line = make_line(tmp_path_factory.mktemp("line"))
    assert line.json("retrain", "words")["version"] == "1"
    return line
