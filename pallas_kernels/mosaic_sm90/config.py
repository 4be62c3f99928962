"""`TuningConfig`: how the Hopper kernel cuts its work. It may change the speed, never the answer: tests run
the whole search space.
"""

from __future__ import annotations

import dataclasses
import math

from pallas_kernels.block_mask import cdiv

SHARED_MEMORY_BYTES = 227 * 1024  # what a block may use on Hopper
OTHER_BYTES = 3 * 1024 + 256  # the bounds of the rows, Mosaic's scratch for reductions, barriers
WARPGROUP_ROWS = 64  # of a wgmma instruction
LINE = 256  # a mask's row of scores is [lines, 256]: the copy engine takes at most 256 elements per dimension
MAX_KEY_BLOCKS = 224 * LINE  # of a mask: the lines that fit beside the reductions' scratch into 227 KiB
# Registers a thread of a consumer may own, by the number of consumer warpgroups; the producer keeps 40,
# beside three consumers 32. 65,536 registers an SM / 128 threads = 512 for all warpgroups together.
CONSUMER_REGISTERS = {1: 240, 2: 232, 3: 160}


@dataclasses.dataclass(frozen=True)
class TuningConfig:
    """Parameters of the attention kernel.

    Attributes:
      warpgroups: consumer warpgroups, 1 to 3; each owns 64 query rows, together one query tile, whose rows
        share a list of key blocks.
      step_keys: keys gathered, multiplied and exponentiated at a time.
      stages: steps of K and V that shared memory holds.
    """

    warpgroups: int
    step_keys: int
    stages: int

    def why_not(self, head_dim: int, block: tuple[int, int]) -> str | None:
        """Why this config cannot run a mask of `block` at `head_dim`; None if it can."""
        if self.warpgroups not in CONSUMER_REGISTERS:
            return f"warpgroups={self.warpgroups} must be 1, 2 or 3"
        if block[0] % (WARPGROUP_ROWS * self.warpgroups):
            rows = WARPGROUP_ROWS * self.warpgroups
            return f"{self.warpgroups} warpgroups take {rows} query rows, which do not divide {block=}'s"
        if self.step_keys % math.lcm(64, block[1]) or not 0 < self.step_keys <= 256:
            return f"step_keys={self.step_keys} must be a multiple of 64 and of {block=}'s keys, at most 256"
        if self.stages < 2:
            return f"stages={self.stages} must be at least 2"
        if self.shared_memory_bytes(head_dim) > SHARED_MEMORY_BYTES:
            needed = self.shared_memory_bytes(head_dim)
            return f"it needs {needed} bytes of shared memory, a thread block has {SHARED_MEMORY_BYTES}"
        if self.accumulator_registers(head_dim) > CONSUMER_REGISTERS[self.warpgroups] - 8:
            filled = self.accumulator_registers(head_dim)
            return f"its accumulators fill {filled} of {CONSUMER_REGISTERS[self.warpgroups]} registers"
        return None

    def shared_memory_bytes(self, head_dim: int) -> int:
        """Two buffers of queries and one of outputs for every consumer, and the stages of K and V, 16-bit
        elements; a step's column numbers for every consumer, 32-bit.
        """
        tiles = 2 * head_dim * (3 * WARPGROUP_ROWS * self.warpgroups + 2 * self.stages * self.step_keys)
        return tiles + 4 * self.warpgroups * self.step_keys + OTHER_BYTES

    def accumulator_registers(self, head_dim: int) -> int:
        """32-bit registers a thread: 64 × step_keys scores, the same as 16-bit weights, and 64 × head_dim
        outputs over 128 threads.
        """
        return self.step_keys // 2 + self.step_keys // 4 + head_dim // 2


def kernel_head_dim(head_dim: int) -> int:
    """Rounded up to what wgmma takes."""
    return cdiv(head_dim, 64) * 64


def kernel_block(block: tuple[int, int]) -> tuple[int, int]:
    """The block with its queries rounded up to whole warpgroups."""
    return cdiv(block[0], WARPGROUP_ROWS) * WARPGROUP_ROWS, block[1]


def search_space(head_dim: int, block: tuple[int, int]) -> list[TuningConfig]:
    """Every config that can run, see `TuningConfig.why_not`."""
    configs = [
        TuningConfig(w, s, n) for w in CONSUMER_REGISTERS for s in range(64, 257, 64) for n in range(2, 5)
    ]
    return [config for config in configs if config.why_not(head_dim, block) is None]


def heuristic(head_dim: int, block: tuple[int, int]) -> TuningConfig | None:
    """The most warpgroups that the mask's query block allows, then the most keys a step that leave the
    compiler registers to work with, then the most stages; None where no config fits. What `autotune` found on
    an H100 follows it closely.
    """

    def merit(config: TuningConfig) -> tuple[int, ...]:
        spare = CONSUMER_REGISTERS[config.warpgroups] - config.accumulator_registers(head_dim)
        return (config.warpgroups, spare >= 28, config.step_keys, config.stages)

    return max(search_space(head_dim, block), key=merit, default=None)
