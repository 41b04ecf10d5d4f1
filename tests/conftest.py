"""What every test stands on: no telemetry, no outward connection, tiny base models."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.environment import quiet_environment

os.environ.update(quiet_environment())

from tests import tiny

# What is tested is what happens on a machine where nobody has set these.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Ignored by what a shell starts in the background, and inherited: the commands under test would not hear Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


LONGEST = ("test_line.py", "test_deploy.py", "test_reproduce.py", "test_promote_flow.py", "test_erase.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take minutes, so that no core is left with one of them at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session", autouse=True)
def no_key_of_ones_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whoever runs the tests may have one, which would sign."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.delenv("PREFIXLINE_KEY", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """More would only wait for each other over matrices so small."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def decoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="session")
def bart_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_bart(tmp_path_factory.mktemp("bart"))
