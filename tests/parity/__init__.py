"""Golden parity: every case of the reference, stage by stage, in units of its noise floor. `python -m
tests.parity` prints the table.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.parity import layers, models, pi3, pi3x, pipeline, sparse
from tests.parity.goldens import Goldens


def run_case(goldens: Goldens, name: str, workdir: Path | None = None) -> dict[str, np.ndarray]:
    """Our numbers for a case, by stage."""
    if name.startswith("layer"):
        return layers.run(goldens, name)
    if name.startswith(("sparse_qkv", "sparse_hilbert")):
        return sparse.run(goldens, name)
    if name in pipeline.CASES:
        return pipeline.CASES[name](goldens)
    if "pi3x" in name:
        return pi3x.run(goldens, name, workdir)
    if "pi3" in name:
        return pi3.run(goldens, name, workdir)
    return models.run(goldens, name, workdir)
