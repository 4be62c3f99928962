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


@pytest.mark.parametrize("name", TINY)
def test_tiny(name):
    check(name)


@pytest.mark.weights
@pytest.mark.parametrize("name", FULL)
def test_full_size(name, workdir):
    jax.clear_caches()
    check(name, workdir)
