"""Our numbers are the reference's: every golden case, every stage, within its limit. `python -m tests.parity`
prints them.
"""

from pathlib import Path

import jax
import pytest

from tests.parity import run_case
from tests.parity.goldens import Goldens

GOLDENS = Goldens()
TINY = [name for name in GOLDENS.names() if not name.startswith("full")]
FULL = [name for name in GOLDENS.names() if name.startswith("full")]
COVERED = (  # by the other cases together
    *("sparse_vggt_tiny_84x112_q32k16_r50c70", "sparse_vggt_tiny_hd64_70x84_q16k8_r60c50"),
    *("sparse_vggt_tiny_84x112_q32k16_c90", "sparse_vggt_tiny_hd64_70x84_q16k8_r50_max"),
    *("vggt_tiny_b1n3_56x84", "vggt_tiny_hd64", "sparse_vggt_tiny_84x112_q16k8_r80c40"),
    *("pi3x_tiny_b2n2", "pi3x_tiny_hd64_b2n2_56x42_dropped"),
)
EVERY_JAX = ("vggt_tiny_b2n2_70x42", "pi3_tiny_b2n2_70x42", "geometry")
# Golden tensors that nothing of ours computes on its own: activations that no VGGT head asks for, and a
# zero-padded sampler whose behaviour the correlation cases cover.
UNUSED = {
    f"head_{x}"
    for x in ("conf_expp0", "conf_sigmoid", "linear", "norm", "norm_exp", "relu", "sigmoid", "xy_inv_log")
}
UNUSED |= {"sample_zeros"}


def check(name: str, workdir: Path | None = None) -> None:
    mine = run_case(GOLDENS, name, workdir)
    rows = GOLDENS.rows(name, mine)
    bad = [f"{stage}: {error:.3g} > {limit:g}" for stage, error, limit in rows if not error <= limit]
    assert not bad, f"{name}: {'; '.join(bad)}"
    missing = [k for k in GOLDENS.missing(name, mine) if k not in UNUSED]
    assert not missing, f"{name}: not computed: {missing}"
    assert rows


def marked(name):
    """Of whole models one of each is enough for every jax, and for every run what others do not cover."""
    marks = [pytest.mark.slow] if name.startswith(COVERED) else []
    return pytest.param(name, marks=[*marks, pytest.mark.every_jax] if name in EVERY_JAX else marks)


@pytest.mark.parametrize("name", list(map(marked, TINY)))
def test_tiny(name):
    check(name)


@pytest.mark.weights
@pytest.mark.parametrize("name", FULL)
def test_full_size(name, workdir):
    jax.clear_caches()
    check(name, workdir)
