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
    *("vggt_tiny_b1n3_56x84", "vggt_tiny_hd64_b1n3_70x70"),
)
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
    """Of whole models the dense cases and the simplest sparse ones are enough for every jax and every run."""
    whole_sparse = name.startswith("sparse_")
    marks = [pytest.mark.slow] if name.startswith(COVERED) else []
    return pytest.param(name, marks=marks if whole_sparse else [*marks, pytest.mark.every_jax])


@pytest.mark.parametrize("name", map(marked, TINY))
def test_tiny(name):
    check(name)


@pytest.mark.weights
@pytest.mark.parametrize("name", FULL)
def test_full_size(name, workdir):
    jax.clear_caches()
    check(name, workdir)
