"""Hopper GPUs (sm_90a), by Pallas Mosaic GPU: the attention kernel, and the mask's row thresholds.

The kernels need jax >= 0.11 and are imported where they run; what is known of them without running stands
here and in `config`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import jax

from pallas_kernels.block_mask import BlockMask, cdiv
from pallas_kernels.implementation import ATTENTION, Device, Implementation, Product, Request
from pallas_kernels.mosaic_sm90 import config as configs
from pallas_kernels.mosaic_sm90.config import MAX_KEY_BLOCKS, TuningConfig

Array = jax.Array
# From so many keys on the kernel, nothing dropped, is faster than cuDNN on an H100: 1.3 times with 13,740
# tokens (0.8 with 1,374); 1.4 to 3.4 times with 50 to 500 queries and 13,740 keys or more, 1.0 and 1.2 with
# 750 and 1,000.
DENSE_TOKENS = 8192
# From so many rows on gelu(x w + b) in one kernel is taken: measured at 68,700, 1.12 ms where XLA takes 1.26.
MATMUL_ROWS = 8192


@cache
def _import_error() -> str | None:
    try:
        import_module("pallas_kernels.mosaic_sm90.attention")
    except ImportError as error:
        return f"it cannot be imported: {error}"
    return None


class MosaicSM90(Implementation):
    """The kernels of this folder. float32 is left to XLA, mask and attention alike."""

    name = "mosaic_sm90"
    dtypes = ("bfloat16", "float16")
    partitioned = False
    takes_lengths = True
    takes_runs = True
    takes_float8 = True
    compiles_in_threads = False  # Mosaic GPU's compiler takes one program at a time
    config_type = TuningConfig

    def why_not_on(self, device: Device) -> str | None:
        capability = device.compute_capability or ""
        if jax.__version_info__ < (0, 11) or device.platform != "gpu" or not capability.startswith("9."):
            needs = "jax >= 0.11 and a Hopper GPU (compute capability 9.x)"
            return f"it needs {needs}; this is jax {jax.__version__} on {device.kind!r}"
        return _import_error()

    def why_not(self, request: Request) -> str | None:
        if reason := super().why_not(request):
            return reason
        return self._attention_limit(request) if request.operation == ATTENTION else self._mask_limit(request)

    def _attention_limit(self, request: Request) -> str | None:
        head_dim, keys = request.H, request.block[1]
        if head_dim > 128:
            return f"it takes a head_dim of at most 128, not {head_dim}"
        if keys % 8:
            return f"it takes key blocks of a multiple of 8, not {keys}"
        key = self.tuning_key(head_dim, request.block)
        if isinstance(request.config, TuningConfig):
            return request.config.why_not(*key)
        if self.heuristic(*key) is None:
            blocks = f"key blocks of {keys} or parts of them"
            return f"no step of at most 256 keys holds {blocks} at head_dim {head_dim}"
        return None

    def _mask_limit(self, request: Request) -> str | None:
        num_blocks = cdiv(request.S, request.block[1])
        if num_blocks > MAX_KEY_BLOCKS:
            return f"it takes at most {MAX_KEY_BLOCKS} key blocks, not {num_blocks}"
        return None

    def beats_dense(self, request: Request) -> bool:
        long = request.S >= DENSE_TOKENS
        return request.dtype.name == "bfloat16" and request.H == 64 and long

    def beats_matmul_gelu(self, product: Product) -> bool:
        whole = product.K % configs.MATMUL_DEPTH == 0 and product.N % configs.MATMUL_COLUMNS == 0
        serves = product.dtype.name == "bfloat16" and not product.sharded
        return serves and whole and product.M >= MATMUL_ROWS and self.why_not_on(product.device) is None

    def matmul_gelu(self, x: Array, w: Array, bias: Array) -> Array:
        from pallas_kernels.mosaic_sm90.matmul import matmul_gelu

        return matmul_gelu(x, w, bias)

    def mask(self, q: Array, k: Array, **how: Any) -> BlockMask:
        from pallas_kernels.mosaic_sm90.mask import pooled_block_mask

        return pooled_block_mask(q, k, **how)

    def attend(self, q: Array, k: Array, v: Array, block_mask: BlockMask, config: Any = None) -> Array:
        from pallas_kernels.mosaic_sm90.attention import block_sparse_attention

        return block_sparse_attention(q, k, v, block_mask, config)

    def tuning_key(self, head_dim: int, block: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        return configs.kernel_head_dim(head_dim), configs.kernel_block(block)

    def search_space(
        self, head_dim: int, block: tuple[int, int], device: Device | None = None
    ) -> list[TuningConfig]:
        return configs.search_space(head_dim, block)

    def heuristic(
        self, head_dim: int, block: tuple[int, int], device: Device | None = None
    ) -> TuningConfig | None:
        return configs.heuristic(head_dim, block)
