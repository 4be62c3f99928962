"""One table of tolerances, and the fixtures that several files share."""

import atexit
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
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import numpy as np
import pytest
from jaxtyping import install_import_hook

from tests import signatures

# Calls are held to the shapes and dtypes in the signatures, where no test passes wrong ones on purpose.
# Before anything of these is imported.
install_import_hook(
    ["fastvggt_jax.geometry", "fastvggt_jax.evaluate.metrics"], f"{signatures.__name__}.checked"
)

from fastvggt_jax import VGGT
from tests.parity.goldens import load_model

# What calls JAX in ways that change with its version; whole runs of toys stand for the rest.
EVERY_JAX = (
    "tests/pallas_kernels",
    "tests/test_attention.py",
    "tests/test_parity.py",
    "tests/test_imports.py",
    "tests/test_extension.py",
    "tests/test_examples.py",
)

# Whole runs of over ten seconds, of whose parts others test each, and the like: `pytest -m slow`.
SLOW = (
    "tests/train/test_train.py::test_a_batch_is_learnt_by_heart",
    "tests/train/test_train.py::test_eight_devices_compute_what_one_does",
    "tests/train/test_train.py::test_a_run_renders_its_own_scenes_of_every_kind_and_validates_on_others",
    "tests/train/test_train.py::test_a_rendered_batch_agrees_with_itself",
    "tests/train/test_train.py::test_pi3_learns_by_its_own_loss_and_is_read_from_a_weight_file",
    "tests/train/test_train.py::test_recomputing_changes_no_gradient",
    "tests/datasets/test_datasets.py::test_rendered_scenes_are_those_of_the_test_split",
    "tests/cli/test_bench.py::test_models_dense_and_sparse[vggt",
    "tests/cli/test_evaluate.py::test_a_random_model_the_whole_way",
    "tests/cli/test_reconstruct.py::test_in_a_process_of_its_own_with_the_compilation_cache",
    "tests/export/test_real.py",
    "tests/faults/test_programs.py::test_in_64_bit_jax_the_numbers_are_the_same_float32[pi3",
    "tests/test_parity.py::test_tiny[sparse_vggt_tiny_84x112_q32k16_r50c70",  # mixtures of the other cases
    "tests/test_parity.py::test_tiny[sparse_vggt_tiny_hd64_70x84_q16k8_r60c50",
)

# What two orders of the same float32 (bfloat16) arithmetic may differ by, relative to the largest value.
TOLERANCE = {"float32": 2e-5, "bfloat16": 3e-2}


def max_error(x, reference) -> float:
    """max |x - reference| / max |reference|."""
    x, reference = np.asarray(x, np.float64), np.asarray(reference, np.float64)
    return float(np.abs(x - reference).max() / np.abs(reference).max())


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items) -> None:
    """`-m weights` takes the full-size cases of the GPU too: they are skipped where there is none."""
    for item in items:
        whole_model = item.nodeid.startswith("tests/test_parity.py") and "[sparse_" in item.nodeid
        if item.nodeid.startswith(EVERY_JAX) and not whole_model:
            item.add_marker(pytest.mark.every_jax)
        if item.nodeid.startswith(SLOW):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("gpu") and jax.default_backend() != "gpu":
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


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
