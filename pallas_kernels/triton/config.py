"""`TuningConfig`: how the Triton kernel cuts its work. It may change the speed, never the answer: tests run
the whole search space.
"""

from __future__ import annotations

import dataclasses

from pallas_kernels.block_mask import cdiv

KIB = 1024
TILE_REGISTERS = 224  # 32-bit registers a thread that its tiles may fill; it has 255
MAX_HEAD_DIM = 128
WARPS = (
    8  # of a thread block or several, that a multiprocessor's 65,536 registers suffice for, at 255 a thread
)
MAX_SLOTS = 2  # key blocks a step, each found by itself: at four Triton's compiler takes a minute


@dataclasses.dataclass(frozen=True)
class Card:
    """What differs between compute capabilities, from 8.0 on.

    Attributes:
      block_bytes: of shared memory that a thread block may use.
      core_bytes: of a multiprocessor, for all of its thread blocks.
      asynchronous: whether matrix products run by themselves on what lies in shared memory, so that Triton
        keeps all stages of K and V there; else one stage is in registers.
    """

    block_bytes: int
    core_bytes: int
    asynchronous: bool

    def thread_blocks(self, shared_memory_bytes: int) -> int:
        """How many its shared memory has room for on a multiprocessor, each with a KiB for the driver."""
        return self.core_bytes // (shared_memory_bytes + KIB)


# CUDA C++ Programming Guide, "Technical specifications per compute capability".
SMALL, AMPERE, LARGE = (
    Card(99 * KIB, 100 * KIB, False),
    Card(163 * KIB, 164 * KIB, False),
    Card(227 * KIB, 228 * KIB, True),
)
CARDS = {"8.0": AMPERE, "8.7": AMPERE, "8.6": SMALL, "8.9": SMALL, "12.0": SMALL, "12.1": SMALL}
CARDS |= dict.fromkeys(("9.0", "10.0", "10.3", "11.0"), LARGE)


def card_of(compute_capability: str | None) -> Card:
    """The least that there is where it is not known, of a later card with all stages in shared memory."""
    least = SMALL if compute_capability is None else dataclasses.replace(SMALL, asynchronous=True)
    return CARDS.get(compute_capability or "", least)


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

    def why_not(self, head_dim: int, block: tuple[int, int], card: Card = SMALL) -> str | None:
        """Why this config cannot run a mask of `block` at `head_dim` on the card; None if it can."""
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
        if (needed := self.shared_memory_bytes(head_dim, card)) > card.block_bytes:
            return f"it needs {needed} bytes of shared memory, a thread block has {card.block_bytes}"
        if self.tile_registers(head_dim) > TILE_REGISTERS:
            return f"its tiles fill {self.tile_registers(head_dim)} registers, more than {TILE_REGISTERS}"
        return None

    def shared_memory_bytes(self, head_dim: int, card: Card = SMALL) -> int:
        """What Triton takes: the queries, and the stages of K and V, 16-bit elements."""
        stages = self.stages if card.asynchronous else self.stages - 1
        return 2 * head_dim * (self.rows + 2 * stages * self.step_keys)

    def tile_registers(self, head_dim: int) -> int:
        """32-bit registers a thread: float32 scores and outputs, 16-bit queries."""
        return self.rows * (self.step_keys + head_dim + head_dim // 2) // (32 * self.warps)


def kernel_head_dim(head_dim: int) -> int:
    """Rounded up to a power of two, as all tiles of Triton are, and to what a matrix product takes."""
    return max(16, 1 << (head_dim - 1).bit_length())


def search_space(head_dim: int, block: tuple[int, int], card: Card = SMALL) -> list[TuningConfig]:
    """Every config that can run, see `TuningConfig.why_not`, less those that are small without need: warps
    have 16 rows, which a matrix product takes, or 32 where there are four of them.
    """
    configs = [
        TuningConfig(rows, keys, warps, stages)
        for rows, warps in ((16, 1), (32, 2), (64, 4), (128, 4), (128, 8))
        for keys in (16, 32, 64, 128)
        for stages in (2, 3, 4)
    ]
    configs = [config for config in configs if config.why_not(head_dim, block, card) is None]
    rows, keys = (max((getattr(c, name) for c in configs), default=0) for name in ("rows", "step_keys"))
    return [c for c in configs if 2 * c.rows >= rows and 2 * c.step_keys >= keys]


def heuristic(head_dim: int, block: tuple[int, int], card: Card = SMALL) -> TuningConfig | None:
    """Tiles that fill the mask's query blocks best, then the most rows, then tiles that leave registers to
    the operands of matrix products, then four warps, then room for as many warps on a multiprocessor as
    registers suffice for, then three stages and steps of 64 keys, or what comes nearest; None where no config
    fits. So `autotune` found it on an H100.

    Where products are asynchronous, steps are 128 keys if that is no more than a key block: on an H100,
    65,536 tokens and density 0.25, 445 instead of 430 TFLOP/s at a head dim of 64, 465 instead of 449 at 128.
    """
    step_keys = 128 if card.asynchronous and block[1] >= 128 else 64

    def merit(config: TuningConfig) -> tuple[float, ...]:
        fitting = -(-block[0] % config.rows)
        roomy = card.asynchronous or config.tile_registers(head_dim) <= 160
        thread_blocks = card.thread_blocks(config.shared_memory_bytes(head_dim, card))
        warps = min(WARPS, thread_blocks * config.warps)
        near = lambda size, best: -max(size / best, best / size)
        step = near(config.step_keys, step_keys)
        return (fitting, config.rows, roomy, near(config.warps, 4), warps, near(config.stages, 3), step)

    return max(search_space(head_dim, block, card), key=merit, default=None)
