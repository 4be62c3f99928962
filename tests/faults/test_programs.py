"""Models inside programs of other people's making: 64-bit JAX, shard_map with its checks, explicit meshes.
And the command in surroundings that lack something.
"""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fastvggt_jax import Sparsity
from fastvggt_jax.cli.options import use_compilation_cache
from fastvggt_jax.errors import InputError, MissingError
from fastvggt_jax.io.cache import cache_folder
from fastvggt_jax.models.base import check_images
from fastvggt_jax.testing.random_weights import random_params
from tests.faults.runner import ROOT, fastvggt
from tests.train.runs import CAMERAS, PI3

IMAGES = np.random.default_rng(0).integers(0, 256, (1, 2, 28, 28, 3), np.uint8)
SPARSE = CAMERAS.clone(sparsity=Sparsity(0.5, cdf_threshold=0.5, block=(4, 4)))
MODELS = {"vggt": SPARSE, "pi3": PI3}


def predicted(model, params):
    """The floating-point fields of a prediction."""
    found = jax.jit(model.apply)(params, IMAGES)
    return {key: value for key, value in vars(found).items() if isinstance(value, jax.Array)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vggt", "pi3"])
def test_in_64_bit_jax_the_numbers_are_the_same_float32(name):
    model = MODELS[name]
    params = random_params(model)
    expected = predicted(model, params)
    with jax.enable_x64(True):
        found = predicted(model, params)
        specs = jax.tree.leaves(model.abstract_params())
    assert {spec.dtype for spec in specs} == {np.dtype("float32")}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype == jnp.float32, key
        np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.slow  # tests/test_sharding.py has models on a mesh
@pytest.mark.parametrize("name", ["vggt", "pi3"])
def test_shard_map_around_a_model_with_its_checks_on(name):
    model = MODELS[name]
    params = random_params(model)
    expected = predicted(model, params)
    mesh = jax.make_mesh((1,), ("scenes",), axis_types=(AxisType.Auto,))
    scenes = PartitionSpec("scenes")

    def run(params, images):
        found = vars(model.apply(params, images))
        return {key: found[key] for key in expected if key != "density"}  # which has no axis of scenes

    run = jax.shard_map(run, mesh=mesh, in_specs=(PartitionSpec(), scenes), out_specs=scenes)
    for key, value in jax.jit(run)(params, IMAGES).items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-5, atol=1e-6)


def test_a_mesh_of_explicit_axes_of_other_names_is_said_to_be_one():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        images = jax.device_put(IMAGES, NamedSharding(mesh, PartitionSpec("data")))
        with pytest.raises(InputError, match=r"explicit axes.*axis_types=\(jax.sharding.AxisType.Auto"):
            jax.eval_shape(lambda images: check_images(images, CAMERAS.patch_size), images)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_standard_output_is_said():
    with open("/dev/full", "w") as full:
        ended = fastvggt("info", "mini", stdout=full)
    ended.assert_sentence("standard output could not be written: No space left on device")


def test_a_closed_standard_output_is_no_traceback():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        ended = fastvggt("info", "mini", stdout=closed)
    assert ended.code == 1 and not ended.stderr


def test_no_standard_output_at_all_is_no_traceback():
    code = "import os, sys; os.close(1); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    command = [sys.executable, "-c", code, "-m", "fastvggt_jax", "info", "mini"]
    ended = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 0 and not ended.stderr


BUG = """
import sys
from fastvggt_jax import __main__, pretrained
def bug(*_):
    raise {error}
pretrained.weight_file = bug
sys.argv = ["fastvggt", "info", "mini"]
__main__.main()
"""


@pytest.mark.parametrize(
    "error", ["OSError('cannot write mode F as PNG')", "BrokenPipeError(32, 'Broken pipe')"]
)
def test_a_bug_that_looks_like_a_fault_of_standard_output_keeps_its_traceback(error):
    command = [sys.executable, "-c", BUG.format(error=error)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1 and "Traceback" in ended.stderr, ended
    assert error.split("'")[1] in ended.stderr


def test_help_on_a_standard_output_that_is_ascii():
    ended = fastvggt("--help", env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"})
    assert ended.code == 0 and "VGGT, ?" in ended.stdout and not ended.stderr


def test_a_platform_that_jax_does_not_have_is_a_sentence(tmp_path):
    ended = fastvggt("reconstruct", "--demo", "-o", tmp_path / "out", env={"JAX_PLATFORMS": "abacus"})
    ended.assert_sentence("JAX_PLATFORMS", "abacus")
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="there the home is another variable's")
def test_no_home_means_no_cache_and_no_folder_of_that_name(tmp_path, monkeypatch):
    import pwd

    def nobody(number):
        raise KeyError(number)

    for variable in ("HOME", "XDG_CACHE_HOME", "FASTVGGT_CACHE", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingError, match="set FASTVGGT_CACHE to a folder"):
        cache_folder("weights")
    before = jax.config.jax_compilation_cache_dir
    try:
        use_compilation_cache(None)
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert not any(tmp_path.iterdir())
