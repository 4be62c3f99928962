"""`TuningConfig`: how the Triton kernel cuts its work. It may change the speed, never the answer: tests run
the whole search space.
"""

from __future__ import annotations

import dataclasses

from pallas_kernels.block_mask import cdiv

# What a thread block may use at compute capabilities 8.6, 8.9 and 12.0, the least of all from 8.0 on.
SHARED_MEMORY_BYTES = 99 * 1024
TILE_REGISTERS = 224  # 32-bit registers a thread that its tiles may fill; it has 255
MAX_HEAD_DIM = 128
MAX_SLOTS = 2  # key blocks a step, each found by itself: at four Triton's compiler takes a minute


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
        for name in ("rows", "step_keys"):
            size = getattr(self, name)
            if size < 16 or size & (size - 1):
                return f"{name}={size} must be a power of two, at least 16"
        if max(self.step_keys, block[1]) % min(self.step_keys, block[1]):
            return f"step_keys={self.step_keys} must divide {block=}'s keys, or be a multiple of them"
        if self.step_keys > MAX_SLOTS * block[1]:
            return f"step_keys={self.step_keys} must be at most {MAX_SLOTS} times {block=}'s keys"
        padded = cdiv(block[0], self.rows) * self.rows
        if self.rows > 16 and 4 * (padded - block[0]) > padded:
            return f"tiles of {self.rows} rows would leave more than a quarter of {block=}'s queries empty"
        if self.warps not in (1, 2, 4, 8) or 16 * self.warps > self.rows:
            return f"warps={self.warps} must be 1, 2, 4 or 8, and have 16 of rows={self.rows} each"
        if self.stages < 2:
            return f"stages={self.stages} must be at least 2"
        if self.shared_memory_bytes(head_dim) > SHARED_MEMORY_BYTES:
            needed = self.shared_memory_bytes(head_dim)
            return f"it needs {needed} bytes of shared memory, a thread block has {SHARED_MEMORY_BYTES}"
        if self.tile_registers(head_dim) > TILE_REGISTERS:
            return f"its tiles fill {self.tile_registers(head_dim)} registers, more than {TILE_REGISTERS}"
        return None

    def shared_memory_bytes(self, head_dim: int) -> int:
        """What Triton takes on cards with `SHARED_MEMORY_BYTES`: the queries, and one stage of K and V less
        than there are, 16-bit elements. (On Hopper all stages are in shared memory, of which there is twice
        as much.)
        """
        return 2 * head_dim * (self.rows + 2 * (self.stages - 1) * self.step_keys)

    def tile_registers(self, head_dim: int) -> int:
        """32-bit registers a thread: float32 scores and outputs, 16-bit queries."""
        return self.rows * (self.step_keys + head_dim + head_dim // 2) // (32 * self.warps)


def kernel_head_dim(head_dim: int) -> int:
    """Rounded up to a power of two, as all tiles of Triton are, and to what a matrix product takes."""
    return max(16, 1 << (head_dim - 1).bit_length())


def search_space(head_dim: int, block: tuple[int, int]) -> list[TuningConfig]:
    """Every config that can run, see `TuningConfig.why_not`, less those that are small without need: warps
    have 16 rows, which a matrix product takes, or 32 where there are four of them.
    """
    configs = [
        TuningConfig(rows, keys, warps, stages)
        for rows, warps in ((16, 1), (32, 2), (64, 4), (128, 4), (128, 8))
        for keys in (16, 32, 64, 128)
        for stages in (2, 3, 4)
    ]
    configs = [config for config in configs if config.why_not(head_dim, block) is None]
    rows, keys = (max((getattr(c, name) for c in configs), default=0) for name in ("rows", "step_keys"))
    return [c for c in configs if 2 * c.rows >= rows and 2 * c.step_keys >= keys]


def heuristic(head_dim: int, block: tuple[int, int]) -> TuningConfig | None:
    """Tiles that fill the mask's query blocks best, then the most rows, then tiles that leave registers to
    work with, then four warps, steps of 64 keys and three stages, or what comes nearest; None where no
    config fits.
    """

    def merit(config: TuningConfig) -> tuple[float, ...]:
        fitting = -(-block[0] % config.rows)
        roomy = config.tile_registers(head_dim) <= 160
        near = lambda size, best: -max(size / best, best / size)
        sizes = near(config.warps, 4), near(config.step_keys, 64), near(config.stages, 3)
        return (fitting, config.rows, roomy, *sizes)

    return max(search_space(head_dim, block), key=merit, default=None)
