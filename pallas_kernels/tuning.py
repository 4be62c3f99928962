"""`TuningConfig`: how the Hopper kernel cuts its work. It may change the speed, never the answer: tests run
the whole search space.
"""

from __future__ import annotations

import dataclasses
import json
import math
from functools import cache
from importlib import resources

SHARED_MEMORY_BYTES = 227 * 1024  # what a block may use on Hopper
OTHER_BYTES = 3 * 1024 + 256  # the bounds of the rows, Mosaic's scratch for reductions, barriers
WARPGROUP_ROWS = 64  # of a wgmma instruction
# Registers a thread of a consumer may own, by the number of consumer warpgroups; the producer keeps 40,
# beside three consumers 32. 65,536 registers an SM / 128 threads = 512 for all warpgroups together.
CONSUMER_REGISTERS = {1: 240, 2: 232, 3: 160}


@dataclasses.dataclass(frozen=True)
class TuningConfig:
    """Parameters of `mosaic_sm90`.

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
            return f"{self.warpgroups} warpgroups take {64 * self.warpgroups} query rows, which do not divide the mask's {block[0]}"
        if self.step_keys % math.lcm(64, block[1]) or not 0 < self.step_keys <= 256:
            return f"step_keys={self.step_keys} must be a multiple of 64 and of the mask's {block[1]} keys, at most 256"
        if self.stages < 2:
            return f"stages={self.stages} must be at least 2"
        if self.shared_memory_bytes(head_dim) > SHARED_MEMORY_BYTES:
            return f"needs {self.shared_memory_bytes(head_dim)} bytes of shared memory, a block has {SHARED_MEMORY_BYTES}"
        if self.accumulator_registers(head_dim) > CONSUMER_REGISTERS[self.warpgroups] - 8:
            return f"its accumulators fill {self.accumulator_registers(head_dim)} of {CONSUMER_REGISTERS[self.warpgroups]} registers"
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


def tuned_file(device_kind: str) -> str:
    return device_kind.replace(" ", "_") + ".json"


@cache
def _tuned(device_kind: str) -> dict[str, list[int]]:
    path = resources.files("pallas_kernels") / "tuned" / tuned_file(device_kind)
    return json.loads(path.read_text())["configs"] if path.is_file() else {}


def key(head_dim: int, block: tuple[int, int]) -> str:
    return f"head_dim={head_dim} block={block[0]}x{block[1]}"


def lookup(device_kind: str, head_dim: int, block: tuple[int, int]) -> TuningConfig | None:
    """The config measured best on such a device, else the heuristic's; None where none fits."""
    found = _tuned(device_kind).get(key(head_dim, block))
    return TuningConfig(*found) if found else heuristic(head_dim, block)
