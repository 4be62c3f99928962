"""Where a whole model's time goes: each part's time, arithmetic and traffic, and the share of what the device
can do.

What `fastvggt bench --profile` runs. Times are those of the device's own kernels, as JAX's profiler records
them in one run, each named by the operation it stands for in the compiled program; kernels that do two parts'
work count for the one that their result is of. What the device does not do, gaps between kernels, is a part
of its own, so that all of them add up. Arithmetic and traffic are those of matrix products, convolutions and
attention, counted in the program before it is compiled; of attention that of the encoder and of the
alternating blocks, not of what the heads have of their own.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from fastvggt_jax.models.base import Model
from fastvggt_jax.models.memory import memory_limit, needed_bytes
from fastvggt_jax.sources.sizing import WIDTH, check_sides
from pallas_kernels.implementation import only

# Of the names that operations bear, the first that fits says which part it is of.
PARTS: dict[str, str] = {
    "sent between devices": r"/(all_to_all|all_gather|psum|pmean)",
    "conditions": r"/(conditions|pose_injection)/",
    "encoder": r"patch_embed|/encoder",
    # The scan over pairs of blocks is a method of the frame blocks.
    "frame blocks: attention": r"/frame_blocks/(?!.*global_blocks).*/attend",
    "frame blocks: the rest": r"/frame_blocks/(?!.*(global_blocks|/taps))",
    "global blocks: block mask": r"/block_mask",
    "global blocks: special queries": r"/special_queries",
    "global blocks: tokens split and merged": r"/(split|merge)_tokens",
    "global blocks: attention": r"global_blocks.*/attend",
    "global blocks: the rest": r"global_blocks",
    "taps": r"/taps",
    "camera head": r"camera_(decoder|head)",
    "depth head": r"depth_head",
    "point head": r"point_(decoder|head)",
    "confidence head": r"conf_(decoder|head)",
    "metric head": r"metric_(decoder|head)",
    "track head": r"track_head",
}
OF_THE_CEILINGS = 0.7  # what whole models come to, see docs/performance.md
OTHER, IDLE = "other", "between kernels"
CONTAINERS = re.compile(r"(while|call|conditional)(\.\d+)?$")  # operations that stand for those inside them


@dataclasses.dataclass
class Work:
    """flop: operations of multiply and add, each one. bytes: operands and results, read and written once."""

    flop: float = 0.0
    bytes: float = 0.0

    def add(self, flop: float, size: float) -> None:
        self.flop, self.bytes = self.flop + flop, self.bytes + size


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """What the device can do: operations per second of a large matrix product, bytes per second of a copy."""

    flop: float
    bytes: float


def part_of(name: str) -> str:
    return next((part for part, pattern in PARTS.items() if re.search(pattern, name)), OTHER)


# ---- time


def name_kernels(environment: MutableMapping[str, str] = os.environ) -> None:
    """Has XLA launch one by one what it would launch as a graph, whose kernels have no names, in a process
    that has this environment from before JAX starts the GPU.
    """
    flags = environment.get("XLA_FLAGS", "")
    environment["XLA_FLAGS"] = f"{flags} --xla_gpu_enable_command_buffer="


def kernel_times(trace: Path) -> dict[str, float]:
    """Seconds of each operation of a compiled program in the last trace that a folder holds; of several
    devices their mean.
    """
    path = max(trace.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    found: dict[str, float] = collections.defaultdict(float)
    planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:") and any(plane.lines)]
    for plane in devices or planes:
        for line in plane.lines:
            for event in line.events:
                op = dict(event.stats).get("hlo_op")
                if op is not None and not CONTAINERS.match(str(op)):
                    found[str(op)] += event.duration_ns / 1e9 / max(1, len(devices))
    return dict(found)


def operation_names(program: str) -> dict[str, str]:
    """Of a compiled program's text: what each operation is called in the code that it comes from."""
    return dict(re.findall(r'%?([\w.\-]+) = [^\n]*metadata=\{[^}]*op_name="([^"]*)"', program))


def times_of_parts(kernels: dict[str, float], names: dict[str, str]) -> dict[str, float]:
    found: dict[str, float] = collections.defaultdict(float)
    for op, seconds in kernels.items():
        found[part_of(names.get(op, ""))] += seconds
    return dict(found)


# ---- work


def work_of_parts(model: Model, params: Any, images: Any) -> dict[str, Work]:
    """Of matrix products and convolutions by part; attention apart, see `work_of_attention`."""
    found: dict[str, Work] = collections.defaultdict(Work)
    with only():  # XLA's products: there is no counting in a kernel
        jaxpr = jax.make_jaxpr(model.apply)(params, images)
    for name, times, equation in _equations(jaxpr.jaxpr, "", 1):
        flop = _flop(equation)
        if flop and "/attend" not in name:
            found[part_of(name)].add(times * flop, times * _bytes(equation))
    return dict(found)


def _equations(jaxpr: Any, prefix: str, times: int) -> Iterator[tuple[str, int, Any]]:
    """(name, how often it runs, equation) of all, within loops too; of branches the first."""
    for equation in jaxpr.eqns:
        name = f"{prefix}/{equation.source_info.name_stack}/{equation.primitive.name}"
        yield name, times, equation
        again = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        inner = list(_inner(equation.params))
        if equation.primitive.name == "cond":
            inner = inner[-1:]  # of a condition on a layer what it does; of a finite head, no second time
            if "isfinite" in name:
                inner = []
        for one in inner:
            yield from _equations(one, name, times * again)


def _inner(parameters: Mapping[str, Any]) -> Iterator[Any]:
    """The programs among an equation's parameters."""
    for value in parameters.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                yield one


def _flop(equation: Any) -> float:
    kind = equation.primitive.name
    if kind == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        depth = math.prod(equation.invars[0].aval.shape[i] for i in contracted)
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * depth
    if kind == "conv_general_dilated":
        kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
        out_channels = kernel[numbers.rhs_spec[0]]
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / out_channels
    return 0.0


def _bytes(equation: Any) -> float:
    values = (*equation.invars, *equation.outvars)
    return float(sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in values))


def work_of_attention(
    model: Any, frames: int, grid: tuple[int, int], density: Iterable[float] | None
) -> dict[str, Work]:
    """Of the encoder's and the alternating blocks' attention in one scene, of the kept blocks alone; density
    by layer.
    """
    patches, D = grid[0] * grid[1], model.embed_dim
    tokens, size = patches + model.num_special, jnp.dtype(model.dtype).itemsize
    total, layers = frames * tokens, [1.0] * model.depth if density is None else list(density)
    special = frames * model.num_special
    encoder, frame, everywhere, few = Work(), Work(), Work(), Work()
    # Its class token and registers are five whatever the model's own special tokens.
    seen, depth = patches + 5, getattr(model, "encoder_depth", 0)
    encoder.add(depth * 4.0 * frames * seen**2 * D, depth * 4.0 * frames * seen * D * size)
    pairs = len(layers)
    frame.add(pairs * 4.0 * frames * tokens**2 * D, pairs * 4.0 * total * D * size)
    for share in layers:
        queries = total if density is None else total - special
        everywhere.add(4.0 * queries * total * D * share, 2.0 * (queries + total) * D * size)
        if density is not None:
            few.add(4.0 * special * total * D, 2.0 * (special + total) * D * size)
    found = {"encoder": encoder, "frame blocks: attention": frame, "global blocks: attention": everywhere}
    return found | ({} if density is None else {"global blocks: special queries": few})


# ---- both


def measure_ceiling() -> Ceiling:
    """Of bfloat16 on a GPU, of float32 elsewhere."""
    gpu = jax.default_backend() == "gpu"
    side, dtype = (8192, jnp.bfloat16) if gpu else (1024, jnp.float32)
    a = jax.random.normal(jax.random.key(0), (side, side), dtype)
    product, copy = jax.jit(lambda a: a @ a), jax.jit(lambda a: a + 1)
    flop = 2.0 * side**3 / _fastest(product, a)
    count = 1 << (29 if gpu else 24)
    if limit := memory_limit():  # a small card has no place for two such arrays, and a model's parameters
        count = min(count, limit // 32)
    wide = jnp.zeros(count, jnp.float32)
    return Ceiling(flop, 2.0 * wide.nbytes / _fastest(copy, wide))


def _fastest(function: Any, argument: Any, repeats: int = 5) -> float:
    jax.block_until_ready(function(argument))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(argument))
        times.append(time.perf_counter() - start)
    return min(times)


def profile(model: Any, params: Any, images: jax.Array, step: Any, given: Any = None) -> dict[str, Any]:
    """A table of parts, JSON-able. step: the compiled `model.apply` of these, which has run once. given: what
    the model takes after the images; arithmetic is counted without.

    profiled_seconds: of one whole run; parts: by name seconds, of several devices their mean, flop and bytes
    of all, and share, of the time that the devices' ceilings would need for them. They and "between kernels"
    add up to that run, but for what is sent while something else is computed.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            start = time.perf_counter()
            prediction = jax.block_until_ready(step(params, images, given))
            seconds = time.perf_counter() - start
        kernels = kernel_times(Path(folder))
    times = times_of_parts(kernels, operation_names(step.as_text()))
    density = None if prediction.density is None else np.asarray(prediction.density).tolist()
    patch = model.image_policy.patch
    grid = (images.shape[2] // patch, images.shape[3] // patch)
    work = work_of_parts(model, params, jax.ShapeDtypeStruct(images.shape, images.dtype))
    for part, more in work_of_attention(model, images.shape[1], grid, density).items():
        work.setdefault(part, Work()).add(more.flop, more.bytes)
    ceiling, devices = measure_ceiling(), len(images.sharding.device_set)
    parts = {}
    for part in (*PARTS, OTHER):
        if part in times or part in work:
            took, done = times.get(part, 0.0), work.get(part, Work())
            least = max(done.flop / ceiling.flop, done.bytes / ceiling.bytes)
            share = least / took / devices if took else None
            parts[part] = {"seconds": took, "flop": done.flop, "bytes": done.bytes, "share": share}
    if jax.default_backend() == "gpu":  # a CPU's threads overlap
        parts[IDLE] = {"seconds": seconds - sum(times.values()), "flop": 0.0, "bytes": 0.0, "share": None}
    return {
        "profiled_seconds": seconds,
        "density": density,
        "ceiling": dataclasses.asdict(ceiling),
        "parts": parts,
    }


def stored_params(model: Model) -> dict[str, Any]:
    """Shapes and dtypes of the parameters as `reconstruct` stores them."""
    specs = flax.traverse_util.flatten_dict(model.abstract_params()["params"], sep="/")
    stored = {name: jax.ShapeDtypeStruct(spec.shape, model.storage(name)) for name, spec in specs.items()}
    return {"params": flax.traverse_util.unflatten_dict(stored, sep="/")}


def forecast(
    model: Model, frames: int, height: int | None = None, width: int | None = None
) -> dict[str, Any]:
    """What a reconstruction of so many photographs of these pixels, by default a square of the model's own,
    needs here, JSON-able: the program is compiled for the default device, without weights, and not run.

    needs_bytes: with all on the device, and low_memory_bytes: with what can in the host's memory; of
      limit_bytes, which JAX may use, None on a CPU. seconds: about; what the device would need at its
      ceilings, of which whole models come to two thirds (docs/performance.md), with every block computed.
    """
    policy = model.image_policy
    height, width = (side or policy.size or WIDTH for side in (height, width))
    check_sides(policy.patch, size=height)
    check_sides(policy.patch, size=width)
    tree = stored_params(model)
    images = jax.ShapeDtypeStruct((1, frames, height, width, 3), jnp.uint8)
    # As `programs` compiles it, but not tuned: XLA tries its kernels on arrays that there may be no room for.
    options: dict[str, Any] = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
    needs = [
        needed_bytes(
            jax.jit(one.apply)
            .lower(tree, images)
            .compile(options if jax.default_backend() == "gpu" else None)
        )
        for one in (model, model.clone(low_memory=True))
    ]
    patch, ceiling = policy.patch, measure_ceiling()
    work = list(work_of_parts(model, tree, images).values())
    dense = model.clone(sparsity=None)
    work += work_of_attention(dense, frames, (height // patch, width // patch), None).values()
    least = sum(max(one.flop / ceiling.flop, one.bytes / ceiling.bytes) for one in work)
    return {
        "photographs": frames,
        "size": {"width": width, "height": height},
        "needs_bytes": needs[0],
        "low_memory_bytes": needs[1],
        "limit_bytes": memory_limit(),
        "seconds": least / OF_THE_CEILINGS,
        "device": jax.devices()[0].device_kind,
    }


def table(row: dict[str, Any]) -> str:
    """A row of `fastvggt bench --profile` in Markdown."""
    frames, ceiling = row["frames"], row["ceiling"]
    lines = [
        "| part | ms per view | GFLOP per view | MB per view | of the ceiling |",
        "|---|---|---|---|---|",
    ]
    for part, one in row["parts"].items():
        numbers = [f"{1e3 * one['seconds'] / frames:.2f}"]
        numbers += [
            f"{one[key] / scale / frames:.0f}" if one[key] else ""
            for key, scale in (("flop", 1e9), ("bytes", 1e6))
        ]
        numbers += [f"{one['share']:.0%}" if one["share"] and one["flop"] else ""]
        lines.append(f"| {part} | {' | '.join(numbers)} |")
    seconds = row.get("profiled_seconds", row["seconds"])  # older rows have these alone
    lines.append(f"| **all** | **{1e3 * seconds / frames:.2f}** | | | |")
    about = f"{row['model']}, {frames} views of {'×'.join(map(str, row['size']))}, {row['sparsity']}"
    peaks = f"{ceiling['flop'] / 1e12:.3g} TFLOP/s and {ceiling['bytes'] / 1e12:.3g} TB/s"
    return "\n".join([*lines, "", f"{about}; {row['device']}, jax {row['jax']}; the ceilings are {peaks}."])


def tables(text: str) -> list[str]:
    """Of those among the lines of rows that were profiled."""
    return [table(row) for row in map(json.loads, text.splitlines()) if "parts" in row]


if __name__ == "__main__":  # python -m fastvggt_jax.profile FILE
    print(*tables(Path(sys.argv[1]).read_text()), sep="\n\n")
