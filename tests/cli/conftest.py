"""Weights of tiny random models, and a pipeline without one."""

from pathlib import Path

import pytest

from fastvggt_jax import pipeline
from fastvggt_jax.testing.tiny import write_random_weights
from tests.cli.commands import fake_predict


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    write_random_weights(path)
    return path


@pytest.fixture(scope="session")
def pi3_weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "pi3.safetensors"
    write_random_weights(path, "pi3")
    return path


@pytest.fixture
def without_model(monkeypatch):
    monkeypatch.setattr(pipeline, "predict", fake_predict)
