"""NVIDIA GPUs from compute capability 8.0 on (Ampere, Ada, Hopper, Blackwell), by Pallas' Triton backend: the
attention kernel, and the mask's row thresholds.

JAX calls the backend deprecated: the kernels are imported where they run, and where it is gone, this says so.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from typing import Any

import jax

from pallas_kernels.block_mask import BlockMask
from pallas_kernels.implementation import ATTENTION, Device, Implementation, Request
from pallas_kernels.triton import config as configs
from pallas_kernels.triton.config import MAX_HEAD_DIM, TuningConfig

Array = jax.Array


@cache
def _import_error() -> str | None:
    try:
        import_module("pallas_kernels.triton.attention")
    except ImportError as error:
        return f"jax {jax.__version__} has no Triton backend of Pallas as it knows it: {error}"
    return None


def _card(device: Device | None) -> configs.Card:
    return configs.card_of(None if device is None else device.compute_capability)


class Triton(Implementation):
    """The kernels of this folder. float32 is left to XLA, mask and attention alike.

    `beats_dense` stays False: where nothing is dropped, cuDNN is faster on an H100 (466 TFLOP/s; 434 here at
    a density of 0.7, 65,536 tokens and a head dim of 64), and other cards were not measured.
    """

    name = "triton"
    dtypes = ("bfloat16", "float16")
    partitioned = False
    takes_lengths = True
    config_type = TuningConfig

    def why_not_on(self, device: Device) -> str | None:
        capability = re.fullmatch(r"(\d+)\.\d+", device.compute_capability or "")
        if device.platform != "gpu" or capability is None or int(capability[1]) < 8:
            needs = "an NVIDIA GPU of compute capability 8.0 or higher"
            return f"it needs {needs}; this is {device.kind!r} ({device.compute_capability})"
        return _import_error()

    def why_not(self, request: Request) -> str | None:
        if reason := super().why_not(request):
            return reason
        return self._attention_limit(request) if request.operation == ATTENTION else None

    def _attention_limit(self, request: Request) -> str | None:
        if request.H > MAX_HEAD_DIM:
            return f"it takes a head_dim of at most {MAX_HEAD_DIM}, not {request.H}"
        key = self.tuning_key(request.H, request.block)
        if isinstance(request.config, TuningConfig):
            return request.config.why_not(*key, _card(request.device))
        if self.heuristic(*key, request.device) is None:
            return f"no step of 16 to 128 keys is made of, or a part of, key blocks of {request.block[1]}"
        return None

    def mask(self, q: Array, k: Array, **how: Any) -> BlockMask:
        from pallas_kernels.triton.mask import pooled_block_mask

        return pooled_block_mask(q, k, **how)

    def attend(self, q: Array, k: Array, v: Array, block_mask: BlockMask, config: Any = None) -> Array:
        from pallas_kernels.triton.attention import block_sparse_attention

        return block_sparse_attention(q, k, v, block_mask, config)

    def tuning_key(self, head_dim: int, block: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        return configs.kernel_head_dim(head_dim), block

    def search_space(
        self, head_dim: int, block: tuple[int, int], device: Device | None = None
    ) -> list[TuningConfig]:
        return configs.search_space(head_dim, block, _card(device))

    def heuristic(
        self, head_dim: int, block: tuple[int, int], device: Device | None = None
    ) -> TuningConfig | None:
        return configs.heuristic(head_dim, block, _card(device))
