"""`fastvggt reconstruct` where memory is short, and what leaves the device."""

import contextlib
import weakref
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastvggt_jax import Scene, pipeline, programs
from fastvggt_jax.errors import OutOfMemoryError
from fastvggt_jax.pretrained import from_pretrained
from fastvggt_jax.programs import DoesNotFit, memory_errors
from tests.cli.commands import PHOTOS, assert_sentence, reconstruct_args, run


def test_what_does_not_fit_waits_in_the_hosts_memory_or_is_said_beforehand(weights, tmp_path, monkeypatch):
    expected = run(*reconstruct_args(weights, tmp_path / "a", "--format", "scene"))
    assert expected.exit_code == 0
    answers = [False, True, True]
    monkeypatch.setattr(programs, "fits", lambda program: answers.pop(0))
    result = run(*reconstruct_args(weights, tmp_path / "b", "--format", "scene"))
    assert result.exit_code == 0 and "memory is scarce: what is computed waits" in result.stderr
    scenes = [Scene.load(tmp_path / name) for name in "ab"]
    np.testing.assert_allclose(scenes[1].depth, scenes[0].depth, rtol=1e-4)
    monkeypatch.setattr(programs, "fits", lambda program: False)
    result = run(*reconstruct_args(weights, tmp_path / "c", "--format", "scene"))
    assert result.exit_code == 1 and "out of memory on" in result.stderr
    assert "take fewer photographs" in result.stderr and not (tmp_path / "c").exists()


def test_what_xla_cannot_even_try_while_it_compiles_does_not_fit_either(weights, tmp_path, monkeypatch):
    real, tried = programs._compiled, []

    def compiled(run, given, pixels, mesh, model):
        tried.append(model.low_memory)
        if fails(model):
            text = "NOT_FOUND: All configs failed during profiling: RESOURCE_EXHAUSTED: Out of memory"
            raise jax.errors.JaxRuntimeError(text)
        return real(run, given, pixels, mesh, model)

    monkeypatch.setattr(programs, "_compiled", compiled)
    fails = lambda model: not model.low_memory  # noqa: E731
    result = run(*reconstruct_args(weights, tmp_path / "a", "--format", "scene"))
    assert result.exit_code == 0 and "memory is scarce: what is computed waits" in result.stderr
    fails = lambda model: True  # noqa: E731
    out = tmp_path / "b"
    assert_sentence(
        run(*reconstruct_args(weights, out)), "2 photographs of 56x42 pixels need more than", 1, out
    )
    assert tried == [False, True] * 2
    with pytest.raises(DoesNotFit):  # so that chunks are tried
        images = pipeline.load_images(PHOTOS / "grey_83x80.png", size=28)
        programs.predict(*from_pretrained(weights), images, lambda name: contextlib.nullcontext())


def test_what_crosses_to_the_device_and_back_is_no_more_than_it_must_be(weights, tmp_path):
    """Photographs of 8 bits go there, parameters as products read them; a confidence comes once."""
    settings = pipeline.Settings((), str(weights), tmp_path, dtype="bfloat16")
    model, params = pipeline.load_model(settings, pipeline.planned(settings))
    dtypes = {str(path): x.dtype for path, x in jax.tree_util.tree_leaves_with_path(params)}
    halves = [path for path, dtype in dtypes.items() if dtype == jnp.bfloat16]
    assert halves and all("kernel" in path or "bias" in path for path in halves)
    assert all(dtype == jnp.float32 for path, dtype in dtypes.items() if "depth_head" in path)
    images = pipeline.load_images(PHOTOS / "grey_83x80.png", size=28)
    kept = programs.Programs()
    found, _ = programs.predict(model, params, images, lambda name: contextlib.nullcontext(), programs=kept)
    (program,) = kept.values()
    assert program.compiled.args_info[0][1].dtype == jnp.uint8
    pixels = [x.size for x in jax.tree.leaves(program.compiled.out_info) if x.size >= 28 * 28]
    assert sorted(pixels) == [28 * 28, 28 * 28, 3 * 28 * 28]  # depth, its confidence, points
    assert found.conf is found.depth_conf
    # What lies in a GPU's pinned memory JAX can compute nothing from.
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(found))


def test_out_of_memory_while_running(weights, tmp_path, monkeypatch):
    def exhausted(self, *args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.")

    monkeypatch.setattr(jax.stages.Compiled, "__call__", exhausted)
    out = tmp_path / "out"
    result = run(*reconstruct_args(weights, out))
    assert_sentence(result, "2 photographs of 56x42 pixels need about 0.0 GiB, of which", 1, out)
    assert "take fewer photographs, a smaller size" in result.stderr


def test_a_program_that_memory_in_pieces_has_no_place_for(weights, tmp_path, monkeypatch):
    """It needs no more than there is, and fails while it runs: less is tried, and then fewer photographs."""
    real, ran, tried, left = jax.stages.Compiled.__call__, [], [], []

    def call(self, *given):
        ran.append(given[1].shape[1])
        left.append([one() is not None for one in tried])
        if failures:
            tried.append(weakref.ref(given[1]))
            raise jax.errors.JaxRuntimeError(failures.pop())
        return real(self, *given)

    monkeypatch.setattr(jax.stages.Compiled, "__call__", call)
    failures = ["RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes."]
    result = run(*reconstruct_args(weights, tmp_path / "a", "--format", "scene"))
    assert result.exit_code == 0 and "memory is scarce: what is computed waits" in result.stderr
    assert ran == [2, 2] and left == [[], [False]], "the photographs are on the device once"
    model, params = from_pretrained(weights, heads=("camera", "depth"), dtype="float32")
    images = pipeline.load_images(PHOTOS / "grey_83x80.png", size=28)
    kept = programs.Programs()
    predict = partial(programs.predict, model, params, images, lambda name: contextlib.nullcontext())
    failures = ["RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes."]
    with pytest.warns(UserWarning, match="memory is scarce"):
        predict(programs=kept)
    assert [program.model.low_memory for program in kept.values()] == [True], (
        "the next scene takes it at once"
    )
    monkeypatch.setattr(programs, "memory_limit", lambda: 2**33)
    failures = ["RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes."]
    with pytest.warns(UserWarning), pytest.raises(DoesNotFit, match="free the device of other") as caught:
        predict(programs=kept)
    assert caught.value.needs is None and not kept
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    failures = ["RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes."]
    with pytest.raises(DoesNotFit):  # which other processes know nothing of
        predict(programs=kept)


def test_out_of_memory_before_there_is_a_program():
    images = pipeline.load_images(PHOTOS / "grey_83x80.png", size=28)
    error = jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes."
    )
    with (
        pytest.raises(OutOfMemoryError, match="the weights alone do not fit"),
        memory_errors(images),
    ):
        raise error
    params = {"a": np.zeros(2**20, np.float32)}
    match = "1 photographs .* more than 16.0 GiB, of which 0.0 GiB are weights"
    with pytest.raises(OutOfMemoryError, match=match), memory_errors(images, params):
        raise error
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"),
        memory_errors(images, params),
    ):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
