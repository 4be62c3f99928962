"""Block-sparse attention for GPUs, written in JAX. Knows arrays, no models: see `reference` for the
definitions, and `implementation` for what computes them and how another is added.
"""

from pallas_kernels import mosaic_sm90, reference, triton, xla
from pallas_kernels.api import block_sparse_attention, matmul_gelu, pooled_block_mask, to_float8
from pallas_kernels.block_mask import BlockMask, Lengths, aligned, joined
from pallas_kernels.implementation import (
    Implementation,
    Request,
    compiles_in_threads,
    cudnn_serves,
    faster_dense,
    faster_matmul_gelu,
    only,
    register,
    registered,
    slower_sparse,
    unused_float8,
)
from pallas_kernels.mosaic_sm90.config import TuningConfig

for _implementation in (
    reference.Reference(),
    xla.XLA(),
    triton.Triton(),
    mosaic_sm90.MosaicSM90(),
):  # the last is tried first
    register(_implementation)

__all__ = [
    "BlockMask",
    "Implementation",
    "Lengths",
    "Request",
    "TuningConfig",
    "aligned",
    "block_sparse_attention",
    "compiles_in_threads",
    "cudnn_serves",
    "faster_dense",
    "faster_matmul_gelu",
    "joined",
    "matmul_gelu",
    "only",
    "pooled_block_mask",
    "register",
    "registered",
    "slower_sparse",
    "to_float8",
    "unused_float8",
]
