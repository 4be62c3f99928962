"""One table of tolerances, and the fixtures that several files share."""

import atexit
import gc
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

if (
    shutil.which("nvidia-smi") is None
):  # compiling takes most of the CPU suite's time; optimised code would be run only once
    flags = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 "
    flags += "--xla_llvm_disable_expensive_passes=true "
    flags += "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"  # they take four times as long
    os.environ.setdefault("XLA_FLAGS", flags)
if tuple(map(int, version("jax").split(".")[:2])) >= (0, 11):
    # Pallas' simulator of Hopper waits in XLA's threads, of which there is one a core unless this says how
    # many: with two it can wait for itself for ever.
    os.environ.setdefault("NPROC", "8")
if (
    "JAX_COMPILATION_CACHE_DIR" not in os.environ
):  # pytest's workers and the commands that tests start compile the same programs
    programs = tempfile.mkdtemp(prefix="fastvggt-programs-")
    atexit.register(shutil.rmtree, programs, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import numpy as np
import pytest
from jaxtyping import install_import_hook

from tests import shapes_once, signatures

# Calls are held to the shapes and dtypes in the signatures, where no test passes wrong ones on purpose.
# Before anything of these is imported.
install_import_hook(
    [
        "fastvggt_jax.geometry",
        *(f"fastvggt_jax.evaluate.{name}" for name in ("metrics", "trajectories", "clouds", "depths")),
    ],
    f"{signatures.__name__}.checked",
)

from fastvggt_jax import VGGT
from fastvggt_jax.io.weights import save_params
from fastvggt_jax.testing.tiny import tiny_model
from tests.parity.goldens import load_model

shapes_once.install()

# What two orders of the same float32 (bfloat16) arithmetic may differ by, relative to the largest value.
TOLERANCE = {"float32": 2e-5, "bfloat16": 3e-2}


def max_error(x, reference) -> float:
    """max |x - reference| / max |reference|."""
    x, reference = np.asarray(x, np.float64), np.asarray(reference, np.float64)
    return float(np.abs(x - reference).max() / np.abs(reference).max())


LONGEST = ("test_sharding.py", "test_synthetic.py")  # cannot be shared among workers at the end of a run


def pytest_collection_modifyitems(items) -> None:
    """The longest tests come first. `-m weights` takes the full-size cases of the GPU too: they are skipped
    where there is none.
    """
    items.sort(key=lambda item: item.path.name not in LONGEST)
    for item in items:
        if item.get_closest_marker("gpu") and jax.default_backend() != "gpu":
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


def pytest_collection_finish() -> None:
    """Tracing makes millions of small objects: to look through them as often as Python does by itself takes
    7 % of the time.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs():
    """JAX never drops a program that it has compiled: those of the whole suite take gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def workdir(tmp_path_factory) -> Path:
    """Where the 5 GB of full-size weights go: FASTVGGT_WORKDIR, which keeps them, or a temporary folder."""
    return Path(os.environ.get("FASTVGGT_WORKDIR") or tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def tiny() -> tuple[VGGT, dict]:
    """VGGT of tiny size with pseudo-weights that make every branch matter, float32, without tracks."""
    model, params = load_model("vggt_tiny")
    heads = ("camera", "depth", "point")
    return model.clone(heads=heads), {
        "params": {k: v for k, v in params["params"].items() if k != "track_head"}
    }


@pytest.fixture
def views():
    """f32[F, 56, 56, 3] random images; call it with F."""
    return lambda frames, height=56, width=56: np.asarray(
        jax.random.uniform(jax.random.key(frames), (frames, height, width, 3)), np.float32
    )


@pytest.fixture(scope="session")
def tracker_weights(tmp_path_factory) -> Path:
    """With a track head, as small as one can be; numpy's numbers, which need no compiling."""
    sizes = dict(embed_dim=32, encoder_depth=1, dpt_features=8, dpt_level_channels=(8, 8, 8, 8))
    tracker = dict(corr_levels=2, corr_radius=1, depth=1, features=16, hidden=16, num_heads=2, num_virtual=2)
    tracker = {f"track_{name}": value for name, value in tracker.items()}
    model = tiny_model(heads=("camera", "depth", "track"), track_iterations=1, **sizes, **tracker)
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("weights") / "tracker.safetensors"
    draw = lambda spec: (0.1 * rng.normal(size=spec.shape)).astype(np.float32)
    params = jax.tree.map(draw, model.abstract_params())
    save_params(path, params, model, source="random numbers", license="none needed")
    return path
