"""gelu(x w + b) as one kernel: in Pallas' simulator on a CPU, and on the GPU (`-m gpu`)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from pallas_kernels import faster_matmul_gelu, matmul_gelu
from tests.conftest import max_error


def products(M, K, N):
    x, w, bias = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(M, K), (K, N), (N,)]))
    return tuple(a.astype(jnp.bfloat16) for a in (x, w * K**-0.5, bias))


def exact_gelu(x, w, bias):
    x, w, bias = (np.asarray(a, np.float64) for a in (x, w, bias))
    y = x @ w + bias
    return y * scipy.special.ndtr(y)


@pytest.mark.every_jax
@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="Pallas Mosaic GPU needs jax >= 0.11")
@pytest.mark.parametrize("M, blocks", [(300, 2), pytest.param(70, 8, marks=pytest.mark.slow)])
def test_a_simulated_product_and_its_gelu(M, blocks, monkeypatch):
    """Of rows that fill no tile, several tiles a thread block, and more of these than tiles."""
    import jax.experimental.pallas.mosaic_gpu as plgpu
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

    from pallas_kernels.mosaic_sm90 import matmul

    launched = []  # on a card rows in multiples of 8 only, which the simulator does not know
    launch = matmul._launch
    monkeypatch.setattr(matmul, "_launch", lambda x, *rest: launched.append(x.shape) or launch(x, *rest))
    kernel = matmul.matmul_gelu
    arguments = products(M, 192, 256)
    simulator = plgpu.InterpretGPUParams(detect_races=True)
    out = jax.jit(partial(kernel, num_blocks=blocks, interpret=simulator))(*arguments)
    assert out.shape == (M, 256) and out.dtype == jnp.bfloat16
    assert [shape[0] % 8 for shape in launched] == [0]
    assert max_error(out, exact_gelu(*arguments)) < 5e-3
    assert not gpu_callbacks.get_races().races_found


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="Pallas Mosaic GPU needs jax >= 0.11")
def test_the_kernels_gelu_is_the_exact_one_to_well_below_bfloat16():
    from pallas_kernels.mosaic_sm90.matmul import gelu

    x = np.concatenate([np.linspace(-30, 30, 200_001), [-1e4, 1e4, 0]]).astype(np.float32)
    exact = x * scipy.special.ndtr(x.astype(np.float64))
    off = np.abs(np.asarray(gelu(x), np.float64) - exact)
    seen = np.abs(exact) > 1e-6
    assert (off[seen] / np.abs(exact[seen])).max() < 1e-3 and off[~seen].max() < 1e-7


@pytest.mark.gpu
@pytest.mark.parametrize("M", [8192, 13_740, 8193])
def test_a_product_and_its_gelu_on_the_gpu(M):
    arguments = products(M, 1024, 4096)
    if (name := faster_matmul_gelu(*arguments[:2])) is None:
        pytest.skip("no kernel of ours serves")
    several = (arguments[0].reshape(1, M, -1), *arguments[1:])
    out = jax.jit(partial(matmul_gelu, implementation=name))(*several)
    batched = jax.jit(jax.vmap(partial(matmul_gelu, implementation=name), (0, None, None)))(*several)
    assert out.shape == (1, M, 4096) and jnp.array_equal(out, batched)
    rows = np.r_[:300, M - 300 : M]
    assert max_error(out[0, rows], exact_gelu(arguments[0][rows], *arguments[1:])) < 5e-3
