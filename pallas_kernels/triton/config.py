"""`TuningConfig`: how the Triton kernel cuts its work. It may change the speed, never the answer: tests run
the whole search space.
"""

from __future__ import annotations

import dataclasses
import math

from pallas_kernels.block_mask import cdiv

# What a thread block may use at compute capabilities 8.6, 8.9 and 12.0, the least of all from 8.0 on.
SHARED_MEMORY_BYTES = 99 * 1024
REGISTERS = 255  # a thread has, 32-bit
MAX_HEAD_DIM = 128


@dataclasses.dataclass(frozen=True)
class TuningConfig:
    """Parameters of the attention kernel.

    Attributes:
      rows: query rows of a tile, a power of two; a query block of the mask is one tile or several.
      step_keys: keys gathered, multiplied and exponentiated at a time, a power of two: several key blocks of
        the mask, or a part of one.
      warps: of a thread block, which computes one tile.
      stages: of the software pipeline that loads K and V.
    """

    rows: int
    step_keys: int
    warps: int
    stages: int

    def why_not(self, head_dim: int, block: tuple[int, int]) -> str | None:
        """Why this config cannot run a mask of `block` at `head_dim`; None if it can."""
        for name, size, least in (("rows", self.rows, 16), ("step_keys", self.step_keys, 16)):
            if size < least or size & (size - 1):
                return f"{name}={size} must be a power of two, at least {least}"
        if max(self.step_keys, block[1]) % min(self.step_keys, block[1]):
            return f"step_keys={self.step_keys} must divide {block=}'s keys, or be a multiple of them"
        if self.warps not in (1, 2, 4, 8) or 16 * self.warps > self.rows:
            return f"warps={self.warps} must be 1, 2, 4 or 8, with at least 16 of {self.rows=} each"
        if self.stages < 1:
            return f"stages={self.stages} must be at least 1"
        if self.shared_memory_bytes(head_dim) > SHARED_MEMORY_BYTES:
            needed = self.shared_memory_bytes(head_dim)
            return f"it needs {needed} bytes of shared memory, a thread block has {SHARED_MEMORY_BYTES}"
        if self.accumulator_registers(head_dim) > REGISTERS - 47:
            filled = self.accumulator_registers(head_dim)
            return f"its accumulators fill {filled} of {REGISTERS} registers"
        return None

    def shared_memory_bytes(self, head_dim: int) -> int:
        """The queries, and K and V of every stage, 16-bit elements."""
        return 2 * head_dim * (self.rows + 2 * self.stages * self.step_keys)

    def accumulator_registers(self, head_dim: int) -> int:
        """32-bit registers a thread: scores, the same as 16-bit weights, and outputs."""
        return self.rows * (self.step_keys + self.step_keys // 2 + head_dim) // (32 * self.warps)


def kernel_head_dim(head_dim: int) -> int:
    """Rounded up to a power of two, as tiles of Triton are, at least what a matrix product takes."""
    return max(16, 1 << (head_dim - 1).bit_length())


def search_space(head_dim: int, block: tuple[int, int]) -> list[TuningConfig]:
    """Every config that can run, see `TuningConfig.why_not`, and that does not cut a query block of the mask
    into tiles that are mostly empty.
    """
    configs = [
        TuningConfig(rows, keys, warps, stages)
        for rows in (16, 32, 64, 128)
        for keys in (16, 32, 64, 128)
        for warps in (1, 2, 4, 8)
        for stages in (2, 3, 4)
        if rows in _useful_rows(block[0]) and keys >= min(32, 16 * block[1])
    ]
    return [config for config in configs if config.why_not(head_dim, block) is None]


def heuristic(head_dim: int, block: tuple[int, int], capability: tuple[int, int]) -> TuningConfig | None:
    """ """
    raise NotImplementedError


def _useful_rows(queries: int) -> list[int]:
    least = min(cdiv(queries, rows) * rows for rows in (16, 32, 64, 128))
    return [rows for rows in (16, 32, 64, 128) if cdiv(queries, rows) * rows < math.inf and least]
