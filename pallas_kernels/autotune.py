"""Finds an implementation's fastest tuning config for this device and writes it to pallas_kernels/tuned/,
where `tuning.lookup` finds it.

    python -m pallas_kernels.autotune --head-dim 64 128 --block 128x64 192x64

Every config of the search space attends with random masks that keep the same number of blocks in every row;
the time of a config does not depend on what the numbers are. What the file already has of other
implementations, head dims and blocks is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import tempfile
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import block_sparse_attention, tuning
from pallas_kernels import implementation as implementations
from pallas_kernels.block_mask import BlockMask, cdiv
from pallas_kernels.implementation import ATTENTION, Implementation
from pallas_kernels.timing import jax_ms


def random_mask(tokens: int, heads: int, block: tuple[int, int], density: float) -> BlockMask:
    """The same number of random key blocks in every row."""
    rows, columns = (cdiv(tokens, size) for size in block)
    score = jax.random.uniform(jax.random.key(1), (1, heads, rows, columns))
    kept = max(1, round(density * columns))
    return BlockMask.from_dense(score >= -jnp.sort(-score)[..., kept - 1 : kept], tokens, (tokens,), block)


def tunable(name: str | None, device: implementations.Device) -> Implementation:
    """The named implementation, or the first that has something to tune and runs on the device; ValueError
    says why there is none.
    """
    reasons = []
    reason: str | None
    for one in map(implementations.find, implementations.names() if name is None else [name]):
        if one.config_type is None or ATTENTION not in one.operations:
            reason = "it has nothing to tune"
        elif (reason := one.why_not_on(device)) is None:
            return one
        reasons.append(f"{one.name!r}: {reason}")
    raise ValueError(f"nothing can be tuned here: {'; '.join(reasons)}")


def measure(
    implementation: Implementation, key: tuning.Key, tokens: int, heads: int, density: float, repeats: int
) -> dict[Any, float]:
    """Effective TFLOP/s of each config of the search space, printed as they come; less those that do not run:
    what a card has is known less surely than what was measured on one.
    """
    head_dim, block = key
    q, k, v = (
        jax.random.normal(key, (1, tokens, heads, head_dim), jnp.bfloat16)
        for key in jax.random.split(jax.random.key(0), 3)
    )
    mask = jax.jit(random_mask, static_argnums=(0, 1, 2, 3))(tokens, heads, block, density)
    flops = 4 * tokens**2 * heads * head_dim * float(mask.density)
    rates = {}
    for config in implementation.search_space(head_dim, block, implementations.device_of()):
        attend = partial(block_sparse_attention, implementation=implementation.name, config=config)
        try:
            rates[config] = flops / jax_ms(attend, q, k, v, mask, repeats=repeats) / 1e9
        except jax.errors.JaxRuntimeError as error:
            print(f"  {config}: does not run: {' '.join(str(error).split())[:200]}", flush=True)
            continue
        print(f"  {config}: {rates[config]:.1f} TFLOP/s", flush=True)
    return rates


def write(path: Path, device_kind: str, implementation: str, entries: list[dict[str, Any]]) -> None:
    """Adds entries to what is there, in the place of those for the same head dim and block; the file is never
    half written.
    """
    content = {"device": device_kind} | tuning.read(path)
    of_operation = content.setdefault(ATTENTION, {})
    known = {tuning.key_of(entry): entry for entry in [*of_operation.get(implementation, []), *entries]}
    of_operation[implementation] = [known[key] for key in sorted(known)]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check(args: argparse.Namespace, path: Path) -> None:
    """ValueError for numbers that mean nothing, and for a file that could not be written in the end."""
    if min(args.tokens, args.heads, args.repeats) < 1:
        raise ValueError("--tokens, --heads and --repeats must be at least 1")
    if not 0 < args.density <= 1:
        raise ValueError("--density must be above 0 and at most 1")
    tuning.read(path)  # what is damaged is not replaced
    if path.is_dir():
        raise ValueError(f"{path} is a folder; --output must be a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror}): --output names another file"
        ) from None


def parse_block(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"it must be queries x keys such as 128x64, not {text!r}")
    return int(found[1]), int(found[2])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pallas_kernels.autotune", description=(__doc__ or "").split("\n\n")[0]
    )
    add = parser.add_argument
    add("--implementation", metavar="NAME", help="default: the first that has something to tune here")
    add("--head-dim", type=int, nargs="+", default=[64])
    add(
        "--block",
        type=parse_block,
        nargs="+",
        default=[(128, 64)],
        metavar="QxK",
        help="queries x keys of a mask block",
    )
    add("--tokens", type=int, default=65_536)
    add("--heads", type=int, default=16)
    add("--density", type=float, default=0.25)
    add("--repeats", type=int, default=3)
    add(
        "--output",
        type=Path,
        metavar="FILE",
        help="default: the installed package's own file for this device, which alone is read",
    )
    return parser.parse_args(arguments)


def keys_of(
    implementation: Implementation, head_dims: list[int], blocks: list[tuple[int, int]]
) -> list[tuning.Key]:
    """What is to be measured, each once; ValueError where no config fits."""
    keys = []
    for head_dim in head_dims:
        for block in blocks:
            key = implementation.tuning_key(head_dim, block)
            if min(head_dim, *block) < 1 or not implementation.search_space(
                *key, implementations.device_of()
            ):
                of = f"head_dim {head_dim} with a block of {block[0]}x{block[1]}"
                raise ValueError(f"no config of {implementation.name!r} fits {of}")
            keys.append(key)
    return list(dict.fromkeys(keys))


def main(arguments: list[str] | None = None) -> int:
    """Measures and writes; 2 for bad arguments, where nothing can be tuned or written, or for a block that no
    config fits.
    """
    args = parse(arguments)
    device = implementations.device_of()
    tuned = Path(str(resources.files("pallas_kernels"))) / "tuned"
    path = args.output or tuned / tuning.tuned_file(device.kind)
    try:
        implementation = tunable(args.implementation, device)
        keys = keys_of(implementation, args.head_dim, args.block)
        check(args, path)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    setting = {"jax": jax.__version__, "dtype": "bfloat16"}
    setting |= {"tokens": args.tokens, "heads": args.heads, "density": args.density}
    entries = []
    for head_dim, block in keys:
        print(f"{implementation.name}: head_dim {head_dim}, block {block[0]}x{block[1]}", flush=True)
        rates = measure(
            implementation, (head_dim, block), args.tokens, args.heads, args.density, args.repeats
        )
        if not rates:
            print("error: none of these configs runs here; nothing was written", file=sys.stderr)
            return 1
        best = max(rates, key=lambda config: rates[config])
        print(f"  best: {best}")
        entry = {"head_dim": head_dim, "block": block, "config": dataclasses.asdict(best), "setting": setting}
        entries.append(entry)
    write(path, device.kind, implementation.name, entries)
    return 0


if __name__ == "__main__":
    sys.exit(main())
