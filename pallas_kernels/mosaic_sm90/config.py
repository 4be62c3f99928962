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
MATMUL_COLUMNS, MATMUL_DEPTH = 128, 64  # of a tile of a product, and of what is multiplied at a time
MAX_KEY_BLOCKS = 224 * LINE  # of a mask: the lines that fit beside the reductions' scratch into 227 KiB
# Registers a thread of a consumer may own, and one of a producer, by streams and consumer warpgroups of each.
# 65,536 registers an SM / 128 threads = 512 for all warpgroups together.
REGISTERS = {(1, 1): (240, 40), (1, 2): (232, 40), (1, 3): (160, 32), (2, 1): (216, 40)}


@dataclasses.dataclass(frozen=True)
class TuningConfig:
    """Parameters of the attention kernel.

    Attributes:
      warpgroups: consumer warpgroups, 1 to 3; each owns 64 query rows, together one query tile, whose rows
        share a list of key blocks.
      step_keys: keys gathered, multiplied and exponentiated at a time.
      stages: steps of K and V that shared memory holds, for each stream.
      streams: query tiles that a thread block has in work at a time, 1 or 2. Each has a list of its own, its
        own consumers and a producer: so the consumer of one multiplies while the other's exponentiates, also
        where a query tile has no more rows than one warpgroup.
    """

    warpgroups: int
    step_keys: int
    stages: int
    streams: int = 1

    def why_not(self, head_dim: int, block: tuple[int, int]) -> str | None:
        """Why this config cannot run a mask of `block` at `head_dim`; None if it can."""
        if (self.streams, self.warpgroups) not in REGISTERS:
            rule = "must be 1, 2 or 3, and streams"
            return f"warpgroups={self.warpgroups} {rule}={self.streams} must be 1, or 2 with one warpgroup"
        if block[0] % (WARPGROUP_ROWS * self.warpgroups):
            rows = WARPGROUP_ROWS * self.warpgroups
            return f"{self.warpgroups} warpgroups take {rows} query rows, which do not divide {block=}'s"
        if self.step_keys % 64 or not 0 < self.step_keys <= 256:
            return f"step_keys={self.step_keys} must be a multiple of 64, at most 256"
        if self.gathered_keys(block) is None:
            return f"step_keys={self.step_keys} must be a multiple of {block=}'s keys or share a factor of 64"
        if self.stages < 2:
            return f"stages={self.stages} must be at least 2"
        if self.shared_memory_bytes(head_dim) > SHARED_MEMORY_BYTES:
            needed = self.shared_memory_bytes(head_dim)
            return f"it needs {needed} bytes of shared memory, a thread block has {SHARED_MEMORY_BYTES}"
        if self.accumulator_registers(head_dim) > self.consumer_registers - 8:
            filled = self.accumulator_registers(head_dim)
            return f"its accumulators fill {filled} of {self.consumer_registers} registers"
        return None

    @property
    def consumer_registers(self) -> int:
        return REGISTERS[self.streams, self.warpgroups][0]

    @property
    def producer_registers(self) -> int:
        return REGISTERS[self.streams, self.warpgroups][1]

    @property
    def query_buffers(self) -> int:
        """Of two streams each has one buffer, by which its output leaves, too: while it waits there the other
        one computes, and the memory is worth more to keys on their way.
        """
        return 2 if self.streams == 1 else 1

    def gathered_keys(self, block: tuple[int, int]) -> int | None:
        """Keys that are copied at a time: a block of the mask or, where a step holds no whole number of them,
        a part of one; None if no part of at least 64 keys fits both.
        """
        if self.step_keys % block[1] == 0:
            return block[1]
        common = math.gcd(self.step_keys, block[1])
        return common if common % 64 == 0 else None

    def shared_memory_bytes(self, head_dim: int) -> int:
        """Two buffers of queries and one of outputs for every consumer, or one for both, and the stages of K
        and V, 16-bit elements; a step's column numbers for every consumer, 32-bit.
        """
        rows = WARPGROUP_ROWS * self.warpgroups * (self.query_buffers + (self.query_buffers > 1))
        tiles = 2 * head_dim * (rows + 2 * self.stages * self.step_keys)
        return self.streams * (tiles + 4 * self.warpgroups * self.step_keys) + OTHER_BYTES

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
    """Every config that can run, see `TuningConfig.why_not`; two streams only where warpgroups cannot share
    what is gathered.
    """
    configs = [
        TuningConfig(w, s, n, g) for g, w in REGISTERS for s in range(64, 257, 64) for n in range(2, 5)
    ]
    configs = [config for config in configs if config.why_not(head_dim, block) is None]
    most = max((config.warpgroups for config in configs), default=0)
    return [config for config in configs if config.streams == 1 or most == 1]


def heuristic(head_dim: int, block: tuple[int, int]) -> TuningConfig | None:
    """The most warpgroups that the mask's query block allows, then two streams where that is one and steps
    stay long, then the most keys a step that leave the compiler registers to work with, then the most stages;
    None where no config fits. What `autotune` found on an H100 follows it closely.

    Two streams need memory for twice the keys; their gain is an H100's, with 64 rows a query block, head_dim
    64, 65,536 tokens and density 0.25: 495 TFLOP/s in steps of 192 keys, 387 with one stream.
    """

    def merit(config: TuningConfig) -> tuple[int, ...]:
        spare = config.consumer_registers - config.accumulator_registers(head_dim)
        two = config.streams == 2 and config.step_keys >= 128
        return (config.warpgroups, two, spare >= 28, config.step_keys, config.stages)

    return max(search_space(head_dim, block), key=merit, default=None)
