"""Block-sparse attention for GPUs, written in JAX. Knows arrays, no models: see `reference` for the
definitions.
"""

from pallas_kernels.api import block_sparse_attention, has_hopper, pooled_block_mask
from pallas_kernels.block_mask import BlockMask
from pallas_kernels.tuning import TuningConfig

__all__ = ["BlockMask", "TuningConfig", "block_sparse_attention", "has_hopper", "pooled_block_mask"]
