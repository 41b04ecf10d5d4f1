"""The trainings that several files look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.base import base_model
from tests.train.bench import Bench, resolved, sharpened
from tests.training_data import classification_rows, generation_rows


@pytest.fixture(scope="session")
def sharp_decoder(decoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sharpened(decoder_folder, tmp_path_factory.mktemp("sharp") / "decoder")


@pytest.fixture(scope="session")
def sharp_encoder(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sharpened(encoder_folder, tmp_path_factory.mktemp("sharp") / "encoder")


@pytest.fixture(scope="session")
def class_rows(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = base_model.tokenizer(resolved(encoder_folder))
    return classification_rows(tmp_path_factory.mktemp("class"), tokenizer, {"train": 40, "validation": 20})


@pytest.fixture(scope="session")
def text_rows(decoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = base_model.tokenizer(resolved(decoder_folder))
    return generation_rows(tmp_path_factory.mktemp("text"), tokenizer, {"train": 40, "validation": 20})


@pytest.fixture
def classification(sharp_encoder: Path, class_rows: Path, tmp_path: Path) -> Bench:
    return Bench("classification", resolved(sharp_encoder), class_rows, tmp_path)


@pytest.fixture
def generation(sharp_decoder: Path, text_rows: Path, tmp_path: Path) -> Bench:
    return Bench("generation", resolved(sharp_decoder), text_rows, tmp_path)


@pytest.fixture(params=["classification", "generation"])
def bench(request: pytest.FixtureRequest) -> Bench:
    found: Bench = request.getfixturevalue(request.param)
    return found
