"""Official weights in one step: converted once into the cache, then found there."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from convert import hub
from convert.conversion import convert
from fastvggt_jax import errors, from_pretrained
from fastvggt_jax.models import registry
from fastvggt_jax.pretrained import read_model, recommended_block, weight_file
from tests.toys import model as toy

RNG = np.random.default_rng(0)
OFFICIAL = {
    "net.colours.weight": RNG.normal(size=(8, 3)).astype(np.float32),
    "net.colours.bias": RNG.normal(size=8).astype(np.float32),
    "net.out.weight": RNG.normal(size=(2, 8)).astype(np.float32),
    "net.out.bias": RNG.normal(size=2).astype(np.float32),
}


@pytest.fixture(autouse=True)
def registered_toy(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTVGGT_CACHE", str(tmp_path / "cache"))
    with registry.registered("toy", toy.PATH):
        yield


@pytest.fixture
def official(tmp_path):
    (tmp_path / "weights").mkdir()
    save_file(OFFICIAL, tmp_path / "weights" / "model.safetensors")
    return tmp_path / "weights" / "model.safetensors"


def cached(tmp_path):
    return sorted((tmp_path / "cache" / "weights").iterdir())


@pytest.mark.parametrize("form", ["file", "folder"])
def test_official_weights_are_converted_once(form, official, tmp_path, capsys, monkeypatch):
    name = official if form == "file" else official.parent
    model, params = from_pretrained(name)
    assert type(model).__name__ == "Toy" and model.heads == ("depth",)
    np.testing.assert_array_equal(params["params"]["colours"]["kernel"], OFFICIAL["net.colours.weight"].T)
    (file,) = cached(tmp_path)
    assert f"converting {official}, once, into {file}" in capsys.readouterr().err
    monkeypatch.setattr("convert.conversion.convert", None)  # it is not called again
    again, _ = from_pretrained(name)
    assert again == model == read_model(name) and weight_file(name) == file
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", [None, 3, {}])
def test_a_name_is_a_text_or_a_path(name):
    with pytest.raises(errors.InputError, match="name must be a text or a path"):
        from_pretrained(name)


def test_new_weights_are_converted_anew(official, tmp_path):
    from_pretrained(official, quiet=True)
    save_file(OFFICIAL | {"net.out.bias": np.ones(2, np.float32)}, official)
    _, params = from_pretrained(official, quiet=True)
    np.testing.assert_array_equal(params["params"]["depth_head"]["bias"], [1, 1])
    assert len(cached(tmp_path)) == 2


def test_a_repository_is_kept_by_its_commit(official, tmp_path, monkeypatch):
    asked = []

    def fetch(repository, revision=None):
        asked.append((repository, revision))
        known = str(revision).startswith("commit-of-")  # a commit is its own
        commit = revision if known else f"commit-of-{revision}"
        path = tmp_path / "hub" / "snapshots" / commit / "model.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(official, path)
        return path

    monkeypatch.setattr(hub, "fetch", fetch)
    for revision in (None, "v2", None):
        model, _ = from_pretrained("somebody/Toy", revision=revision, quiet=True)
        assert type(model).__name__ == "Toy"
    assert [path.name for path in cached(tmp_path)] == [
        "somebody--Toy-commit-of-None-v1.safetensors",
        "somebody--Toy-commit-of-v2-v1.safetensors",
    ]
    # What is converted is that commit, whatever the branch has become meanwhile.
    assert [revision for _, revision in asked] == [None, "commit-of-None", "v2", "commit-of-v2", None]


def test_what_cannot_be_converted_leaves_nothing_in_the_cache(official, tmp_path):
    save_file(OFFICIAL | {"net.more": np.ones(2, np.float32)}, official)
    with pytest.raises(errors.WeightsError, match="1 unexpected: net.more"):
        from_pretrained(official, quiet=True)
    assert not cached(tmp_path)
    save_file(OFFICIAL, official.with_name("other.safetensors"))
    official.rename(official.with_name("another.safetensors"))
    with pytest.raises(
        errors.InputError, match="several weight files .another.safetensors, other.safetensors."
    ):
        from_pretrained(official.parent)


def test_progress_and_report(official, tmp_path):
    seen = []
    report = convert(official, tmp_path / "out.safetensors", progress=lambda *now: seen.append(now))
    assert seen == [(i, 4) for i in range(1, 5)]
    lines = list(report.lines())
    assert lines[0] == f"read      {official}: 4 tensors, 50 numbers, float32"
    assert lines[1] == "model     Toy, sizes of the toy; heads: depth"
    assert json.loads(json.dumps(report.model.config()))["width"] == 8


def test_a_bundled_model_has_a_block_of_its_own():
    assert recommended_block("mini") == (64, 32) and recommended_block("vggt.safetensors") == (128, 64)
