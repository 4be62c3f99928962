"""Finds the fastest `TuningConfig` for this GPU and writes it to pallas_kernels/tuned/, where `tuning.lookup`
finds it.

    python -m pallas_kernels.autotune --head-dim 64 128 --block 128x64 192x64

Every config of the search space attends with random masks that keep the same number of blocks in every row;
the time of a config does not depend on what the numbers are. Configs of other head dims and blocks that the
file already has are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from importlib import resources
from pathlib import Path

import jax
import jax.numpy as jnp

from pallas_kernels import block_sparse_attention, tuning
from pallas_kernels.block_mask import BlockMask, cdiv
from pallas_kernels.timing import jax_ms


def random_mask(tokens: int, heads: int, block: tuple[int, int], density: float) -> BlockMask:
    """The same number of random key blocks in every row."""
    rows, columns = (cdiv(tokens, size) for size in block)
    score = jax.random.uniform(jax.random.key(1), (1, heads, rows, columns))
    kept = max(1, round(density * columns))
    return BlockMask.from_dense(score >= -jnp.sort(-score)[..., kept - 1 : kept], tokens, (tokens,), block)


def measure(
    head_dim: int, block: tuple[int, int], tokens: int, heads: int, density: float, repeats: int
) -> dict[tuning.TuningConfig, float]:
    """Effective TFLOP/s of each config of the search space, printed as they come."""
    q, k, v = (
        jax.random.normal(key, (1, tokens, heads, head_dim), jnp.bfloat16)
        for key in jax.random.split(jax.random.key(0), 3)
    )
    mask = jax.jit(random_mask, static_argnums=(0, 1, 2, 3))(tokens, heads, block, density)
    flops = 4 * tokens**2 * heads * head_dim * float(mask.density)
    rates = {}
    for config in tuning.search_space(head_dim, block):
        attend = partial(block_sparse_attention, implementation="mosaic_sm90", config=config)
        rates[config] = flops / jax_ms(attend, q, k, v, mask, repeats=repeats) / 1e9
        print(f"  {config}: {rates[config]:.1f} TFLOP/s", flush=True)
    return rates


def write(path: Path, setting: dict, configs: dict[str, list[int]]) -> None:
    """Adds to what is there; the file is never half written."""
    known = json.loads(path.read_text())["configs"] if path.is_file() else {}
    content = {"setting": setting, "configs": dict(sorted((known | configs).items()))}
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


def parse_block(text: str) -> tuple[int, int]:
    queries, keys = map(int, text.split("x"))
    return queries, keys


def main(arguments: list[str] | None = None) -> int:
    """Measures and writes; 2 without a Hopper GPU or for a block that no config fits."""
    parser = argparse.ArgumentParser(
        prog="python -m pallas_kernels.autotune", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--head-dim", type=int, nargs="+", default=[64], choices=(64, 128))
    parser.add_argument(
        "--block",
        type=parse_block,
        nargs="+",
        default=[(128, 64)],
        metavar="QxK",
        help="queries x keys of a mask block",
    )
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--density", type=float, default=0.25)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--output", type=Path, help="default: the installed package's own file for this device"
    )
    args = parser.parse_args(arguments)
    cases = [(head_dim, block) for head_dim in args.head_dim for block in args.block]
    for head_dim, block in cases:
        if min(block) < 1 or not tuning.search_space(head_dim, block):
            print(
                f"error: no config fits head_dim {head_dim} with a block of {block[0]}x{block[1]}",
                file=sys.stderr,
            )
            return 2
    device = jax.devices()[0]
    if device.platform != "gpu" or not device.compute_capability.startswith("9."):
        print(f"error: the kernel needs a Hopper GPU, this is {device.device_kind}", file=sys.stderr)
        return 2
    found = {}
    for head_dim, block in cases:
        print(f"head_dim {head_dim}, block {block[0]}x{block[1]}", flush=True)
        rates = measure(head_dim, block, args.tokens, args.heads, args.density, args.repeats)
        best = max(rates, key=rates.get)
        found[tuning.key(head_dim, block)] = [best.warpgroups, best.step_keys, best.stages]
        print(f"  best: {best}")
    path = args.output or Path(str(resources.files("pallas_kernels"))) / "tuned" / tuning.tuned_file(
        device.device_kind
    )
    setting = {"device": device.device_kind, "jax": jax.__version__, "dtype": "bfloat16"}
    write(path, setting | {"tokens": args.tokens, "heads": args.heads, "density": args.density}, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
