"""Whole-model time and peak memory over frames × sparsity, beside PyTorch's attention at the same shapes.

What `fastvggt bench` runs. Weights and images are random: the time does not depend on them, nor does a dense
model's; which blocks a sparse model keeps does, but with ρ alone their number does not. Each row is measured
in a process of its own (`python -m fastvggt_jax.bench JSON`), so its peak memory is its own.

"needs GiB" is what the compiled program holds at once: weights, images, outputs and temporaries. "peak GiB"
is the most that the process has allocated, which on a first compilation includes what XLA's autotuner tries
out; a memory limit shows that it does without. Of several devices each needs so much.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from fastvggt_jax import __version__
from fastvggt_jax.attention import dense_attention, to_float8
from fastvggt_jax.errors import Error, FailedError, InputError, out_of_memory
from fastvggt_jax.io.json_files import read_json
from fastvggt_jax.models import registry
from fastvggt_jax.models.base import COMPUTE, CONDITIONS, Model
from fastvggt_jax.models.conditions import Conditions
from fastvggt_jax.models.memory import needed_bytes
from fastvggt_jax.profile import name_kernels, profile
from fastvggt_jax.programs import compile_to_fit
from fastvggt_jax.sharding import along_frames, frames_mesh
from fastvggt_jax.sources.sizing import check_sides
from fastvggt_jax.sparsity import parse_block, parse_sparsity
from fastvggt_jax.testing.random_weights import random_params
from pallas_kernels.implementation import names, only
from pallas_kernels.timing import jax_ms, torch_ms

GIB = 2**30
QUERY_POINTS = 256
DTYPES = ("float32", "bfloat16", "float16")
DEFAULT_SIZE = 518  # of a model that has no size of its own
MEMORY_SHARE, MOST = "XLA_PYTHON_CLIENT_MEM_FRACTION", "0.93"  # that JAX takes; as `reconstruct` sets it
# Of what a row is of, what matters to one layer's dense attention.
OF_ATTENTION = (
    *("model", "config", "frames", "size", "float8_scores", "repeats"),
    *("device", "jax", "fastvggt_jax", "commit"),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One row. Everything is checked when it is made.

    Attributes:
      model: a name of the registry. config: a JSON file of the sizes of another model than the released one.
      frames, size, height: views, and pixels of their width and height, by default a square.
      heads: None for all but the tracker, which needs points to track, and what reads conditions.
      conditions: the model is given K, depth and pose of every view.
      sparsity, block: as the command line spells them. float8_scores: see `Model`.
      dtype: of the backbone's matrix products, None for the model's.
      param_dtype: of the parameters; "compute" as `from_pretrained` knows it.
      repeats: of which the median counts, after a first run; 0: the first one counts.
      memory_limit: GiB that JAX may allocate, or None.
      kernels: names of the implementations of pallas_kernels that may serve, None for all.
      low_memory: see `Model`; otherwise only where all does not fit on the device, as `reconstruct` does it.
      devices: that share the views.
      profile: also says where the time goes, see `fastvggt_jax.profile`.
    """

    model: str = "vggt"
    frames: int = 1
    size: int | None = None
    height: int | None = None
    sparsity: str = "dense"
    block: str = "128x64"
    heads: tuple[str, ...] | None = None
    conditions: bool = False
    float8_scores: bool = False
    dtype: str | None = None
    param_dtype: str = COMPUTE
    config: str | None = None
    repeats: int = 3
    memory_limit: float | None = None
    kernels: tuple[str, ...] | None = None
    low_memory: bool = False
    devices: int = 1
    profile: bool = False

    def __post_init__(self) -> None:
        if self.heads is not None:
            object.__setattr__(self, "heads", tuple(self.heads))
        if self.kernels is not None:
            object.__setattr__(self, "kernels", tuple(self.kernels))
            unknown = [name for name in self.kernels if name not in names()]
            if unknown:
                text = f"kernels has no {', '.join(unknown)}; there are {', '.join(names())}"
                raise InputError(text, argument="kernels")
        for name, known in (("dtype", (*DTYPES, None)), ("param_dtype", (*DTYPES, COMPUTE))):
            value = getattr(self, name)
            if value not in known:
                right = " or ".join(one for one in known if one)
                raise InputError(f"{name} must be {right}, not {value!r}", argument=name)
        for name, least in (("frames", 1), ("repeats", 0), ("devices", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, not {getattr(self, name)}", argument=name)
        if self.memory_limit is not None and shutil.which("nvidia-smi") is None:
            text = "memory_limit needs an NVIDIA GPU: nvidia-smi, which tells the whole memory, is not here"
            raise InputError(text, argument="memory_limit")
        if self.memory_limit is not None and not self.memory_limit > 0:
            text = f"memory_limit must be above 0 GiB, not {self.memory_limit}"
            raise InputError(text, argument="memory_limit")
        width, height = self.pixels
        check_sides(self.build().image_policy.patch, size=width, height=height)

    def build(self) -> Model:
        """The model. Raises InputError, MissingError."""
        cls = registry.find(self.model)
        model = cls.from_config(
            self._fields(cls), sparsity=parse_sparsity(self.sparsity, parse_block(self.block))
        )
        if model.sparsity is not None:
            model.sparsity.check_depth(model.depth)
        unknown = [head for head in self.heads or () if head not in model.heads]
        if unknown:
            text = f"heads: {cls.__name__} has no {', '.join(unknown)}; it has {', '.join(model.heads)}"
            raise InputError(text, argument="heads")
        if self.conditions and CONDITIONS not in model.heads:
            text = f"conditions are for a model that takes them, such as pi3x, and {self.model} does not"
            raise InputError(text, argument="conditions")
        if self.conditions and self.devices > 1:
            raise InputError("conditions are taken on one device: leave devices out", argument="conditions")
        heads = self.heads or tuple(head for head in model.heads if head not in ("track", CONDITIONS))
        if self.conditions:
            heads = (*(head for head in heads if head != CONDITIONS), CONDITIONS)
        model = model.clone(heads=heads, float8_scores=self.float8_scores)
        return model.clone(dtype=jnp.dtype(self.dtype)) if self.dtype else model

    def _fields(self, cls: type[Model]) -> dict[str, Any]:
        if self.config is None:
            return {}
        fields = read_json(self.config, "config")
        if not isinstance(fields, dict):
            raise InputError(f"{self.config} must hold a JSON object, the model's fields", argument="config")
        return fields.get("config", fields)

    @property
    def side(self) -> int:
        if self.size is not None:
            return self.size
        return self.build().image_policy.size or DEFAULT_SIZE

    @property
    def pixels(self) -> tuple[int, int]:
        """(width, height)."""
        return self.side, self.side if self.height is None else self.height

    def account(self, model: Model) -> dict[str, Any]:
        """What a row is of, JSON-able, as `model` was built for it: by this it can be measured again."""
        said = dataclasses.asdict(self) | {
            "size": list(self.pixels),
            "heads": list(model.heads),
            "dtype": jnp.dtype(model.dtype).name,
            "low_memory": model.low_memory,
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "fastvggt_jax": __version__,
            "commit": _commit(),
        }
        del said["height"], said["profile"]
        return said


def _commit() -> str | None:
    """That this file is of, with a "+" where something has changed since; None where it is of none, as where
    the package is installed, though that be inside of another repository.
    """
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    describe = [*git, "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], capture_output=True, check=True)
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def measure(case: Case) -> dict[str, Any]:
    """Compiles and runs the model."""
    model, mesh = case.build(), frames_mesh(case.devices)
    stored = model.storage if case.param_dtype == COMPUTE else lambda _: jnp.dtype(case.param_dtype)
    with jax.default_prng_impl("rbg"):  # compiles in a tenth of the time
        params = random_params(model, stored=stored)
    width, height = case.pixels
    images = jax.random.uniform(jax.random.key(1), (1, case.frames, height, width, 3))
    given: Any = None
    if "track" in model.heads:
        given = jnp.full((1, QUERY_POINTS, 2), min(height, width) / 2, jnp.float32)
    elif case.conditions:
        given = some_conditions(case.frames, height, width)
    if mesh.size > 1:
        whole = NamedSharding(mesh, PartitionSpec())
        params, given = jax.device_put((params, given), whole)
        images = jax.device_put(images, along_frames(mesh, images.shape, case.frames))
    jax.block_until_ready((params, images, given))

    def compiled(model: Model) -> jax.stages.Compiled:
        with contextlib.ExitStack() as stack:
            if case.kernels is not None:
                stack.enter_context(only(*case.kernels))
            if mesh.size > 1:
                stack.enter_context(jax.set_mesh(mesh))
            return jax.jit(model.apply).lower(params, images, given).compile()

    start = time.perf_counter()
    step, model = compile_to_fit(compiled, model.clone(low_memory=case.low_memory))
    compile_s = time.perf_counter() - start
    times = []
    for _ in range(1 + case.repeats):
        start = time.perf_counter()
        jax.block_until_ready(step(params, images, given))
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[1:] or times)
    stats = [device.memory_stats() or {} for device in mesh.devices.flat]
    details = profile(model, params, images, step, given) if case.profile else {}
    return case.account(model) | {
        "seconds": seconds,
        "ms_per_frame": 1e3 * seconds / case.frames,
        "compile_seconds": compile_s,
        "needs_gib": (needed_bytes(step) or 0) / GIB,
        "peak_gib": max(one.get("peak_bytes_in_use", 0) for one in stats) / GIB,
        **details,
    }


def some_conditions(frames: int, height: int, width: int) -> Conditions:
    """Of everything: cameras in a row, looking the same way."""
    K = jnp.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]], jnp.float32)
    poses = jnp.tile(jnp.eye(4), (1, frames, 1, 1)).at[0, :, 0, 3].set(0.1 * jnp.arange(frames))
    depth = jax.random.uniform(jax.random.key(2), (1, frames, height, width), minval=1.0, maxval=3.0)
    return Conditions(depth=depth, K=jnp.tile(K, (1, frames, 1, 1)), world_from_cam=poses)


def measure_attention(case: Case) -> dict[str, Any]:
    """Dense attention of one global layer in ms: ours, and PyTorch's by backend where torch and a GPU are
    there.
    """
    model = case.build()
    patch, heads, (width, height) = model.image_policy.patch, model.num_heads, case.pixels
    tokens = case.frames * (model.num_special + (height // patch) * (width // patch))
    shape = (tokens, heads, model.embed_dim // heads)
    q, k, v = (
        jax.random.normal(key, (1, *shape), jnp.bfloat16) for key in jax.random.split(jax.random.key(0), 3)
    )
    if case.float8_scores:
        q, k = to_float8(q), to_float8(k)
    said = case.account(model)
    row: dict[str, Any] = {name: said[name] for name in OF_ATTENTION}
    row |= {"tokens": tokens, "num_heads": heads, "head_dim": shape[2]}
    row["ours"] = jax_ms(dense_attention, q, k, v, repeats=max(1, case.repeats))
    return row | _torch_attention(*shape, max(1, case.repeats))


def _torch_attention(tokens: int, heads: int, head_dim: int, repeats: int) -> dict[str, float]:
    try:
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    q, k, v = (torch.randn(1, heads, tokens, head_dim, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    attend = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)
    result = {}
    for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):
        with sdpa_kernel(backend):
            result[name] = torch_ms(torch, attend, repeats=repeats)
    return result


MEASURES = {"model": measure, "attention": measure_attention}


def run(what: str, case: Case) -> dict[str, Any]:
    """A row of MEASURES, measured in a process of its own. Raises FailedError with what went wrong there, or
    RuntimeError with the traceback of a bug.
    """
    environment = dict(os.environ)
    if case.profile:
        name_kernels(environment)
    if what == "model":  # PyTorch wants some beside one layer's attention
        environment.setdefault(MEMORY_SHARE, MOST)
    if case.memory_limit is not None:
        environment[MEMORY_SHARE] = f"{case.memory_limit / _gpu_memory_gib():.4f}"
    # The new process has no models but the package's own and those of entry points.
    registered = [case.model, registry.path_of(registry.find(case.model))]
    settings = {"what": what, "case": dataclasses.asdict(case), "registered": registered}
    command = [sys.executable, "-m", "fastvggt_jax.bench", json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    where = f"{case.frames} frames, {case.sparsity}"
    if done.returncode < 0:
        text = f"{where}: its process was ended by signal {-done.returncode}"
        text += ", as by a system whose memory runs out" * (done.returncode == -9)
        raise FailedError(text)
    if done.returncode:
        raise RuntimeError(f"{where}:\n{done.stderr}")  # a bug of ours, whose traceback this is
    row = json.loads(done.stdout.strip().splitlines()[-1])
    if "error" in row:
        raise FailedError(f"{where}: {row['error']}")
    return row


def gpu_query(what: str) -> list[str]:
    """The command that asks nvidia-smi about the first GPU that JAX sees, without opening it."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits", f"--id={first}"]


def _gpu_memory_gib() -> float:
    """Of the first GPU: this process must not open the device that its rows need."""
    query = gpu_query("memory.total")
    return float(subprocess.run(query, capture_output=True, text=True, check=True).stdout) / 1024


def main(text: str) -> dict[str, Any]:
    """The row that `run` asks a process of its own for; what is no bug of ours as {"error": sentence}."""
    given = json.loads(text)
    if given["registered"][0] not in registry.names():
        registry.register(*given["registered"])
    try:
        return MEASURES[given["what"]](Case(**given["case"]))
    except Exception as error:
        if isinstance(error, Error):
            return {"error": str(error)}
        if out_of_memory(error):
            return {"error": "out of memory: " + str(error).strip().splitlines()[0][:200]}
        raise


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
