"""A model compiled for so many images, and run, within the memory that there is: all results leave the device
as one program ends. What does not fit is tried with what can wait in the host's memory, and is said then.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fastvggt_jax.errors import OutOfMemoryError, out_of_memory
from fastvggt_jax.models.base import Model
from fastvggt_jax.models.conditions import Conditions
from fastvggt_jax.models.memory import fits, memory_limit, needed_bytes
from fastvggt_jax.models.prediction import Reconstruction
from fastvggt_jax.refine.queries import Queries
from fastvggt_jax.sharding import along_frames
from fastvggt_jax.sources import Images

Step = Callable[[str], contextlib.AbstractContextManager]
SCARCE = "memory is scarce: what is computed waits in the host's memory, which takes a little longer"


class DoesNotFit(OutOfMemoryError):
    """A program is too large for the device: `needs` bytes, as is known before it runs; None where nobody
    knows, or where it failed although as much is there, but in pieces or another program's.
    """

    needs: int | None = None


class Program(NamedTuple):
    """A compiled one. model: as it was compiled; one_confidence: that of points is that of depth, which would
    leave the device twice.
    """

    compiled: jax.stages.Compiled
    model: Model
    one_confidence: bool


class Programs(dict[Any, Program]):
    """The last few that were compiled, by the shapes of what they take; all of one model and its options."""

    MOST = 8  # scenes come sorted by size, so that equal ones follow one another

    def of(self, key: Any, make: Callable[[], Program]) -> Program:
        program = self.pop(key, None) or make()
        self[key] = program
        while len(self) > self.MOST:
            del self[next(iter(self))]
        return program


def bucket_of(frames: int) -> int:
    """A number of frames that is compiled for, the next of 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 80, 96,
    112, 128, 160, ...: less than a half more than there are, and from 64 on, where a run takes longer beside
    a compilation, less than a quarter.
    """
    power = 1 << (max(frames - 1, 1).bit_length() - 1)
    step = max(power // (2 if frames <= 64 else 4), 1)
    return -(-frames // step) * step


def predict(
    model: Model,
    params: Any,
    images: Images,
    step: Step,
    points_from: str | None = None,
    queries: Queries | None = None,
    mesh: Mesh | None = None,
    programs: Programs | None = None,
    conditions: Conditions | None = None,
    bucket: bool = False,
) -> tuple[Reconstruction, list[float] | None]:
    """(the reconstruction of these images, computed, as arrays of numpy; the share of blocks that each sparse
    layer has attended to).

    mesh: that is set and shares the frames, if any.
    programs: where to find those of other scenes, of this model, points_from and mesh.
    conditions: what is known of the views, for a model that takes them.
    bucket: compile for `bucket_of` them, without queries, mesh and conditions, if that fits as well.
    """
    pixels, count = images.pixels[None], len(images.pixels)
    if bucket:  # by the last one, whose numbers are as good as any
        pixels = np.pad(pixels, ((0, 0), (0, bucket_of(count) - count), *[(0, 0)] * 3), mode="edge")
    asked: tuple[Any, ...] = () if conditions is None else (conditions,)
    asked = asked if queries is None else (*asked, np.asarray(queries.xy)[None])
    given = (params, asked, np.int32(count) if bucket else None)
    frames = None if queries is None else queries.frames
    key = (pixels.shape, frames, bucket, repr(jax.tree.map(np.shape, asked)))
    with step("compile"), memory_errors(images, params, of=DoesNotFit):
        make = partial(program_for, model, given, pixels, points_from, frames, mesh)
        program = make() if programs is None else programs.of(key, make)
    compiled = program.compiled
    scarce = program.model.low_memory and not model.low_memory
    filled_up = pixels.shape[1] > count
    if filled_up and (scarce or not fits(compiled)):
        return predict(model, params, images, step, points_from, programs=programs)
    if not fits(compiled):
        error = DoesNotFit(_memory_sentence(images, params, compiled, ""))
        error.needs = needed_bytes(compiled)
        raise error
    if scarce:
        warnings.warn(SCARCE, stacklevel=2)
    ran = False
    try:
        with step("run"), memory_errors(images, params, compiled, of=DoesNotFit):
            place = None if mesh is None else along_frames(mesh, pixels.shape, pixels.shape[1])
            found, density = jax.block_until_ready(compiled(given, jax.device_put(pixels, place)))
        ran = True
    except DoesNotFit:
        if programs is not None and not filled_up:  # the next scene takes what is tried now
            programs.pop(key)
        if jax.process_count() > 1:  # other processes know nothing of it
            raise
        if program.model.low_memory and not filled_up:
            raise
    if not ran:  # not within the except, whose error holds the photographs on the device
        if filled_up:
            return predict(model, params, images, step, points_from, programs=programs)
        warnings.warn(SCARCE, stacklevel=2)
        less = model.clone(low_memory=True)
        return predict(less, params, images, step, points_from, queries, mesh, programs, conditions, bucket)
    # As they lie there: JAX can compute nothing from arrays in that memory.
    found, density = jax.tree.map(np.asarray, (found, density))
    if bucket:
        found = found.first(count)
    if program.one_confidence:
        found = dataclasses.replace(found, conf=found.depth_conf)
    return found, None if density is None else [round(float(d), 4) for d in density]


def program_for(
    model: Model,
    given: Any,
    pixels: np.ndarray,
    points_from: str | None = None,
    frames: tuple[int, ...] | None = None,
    mesh: Mesh | None = None,
) -> Program:
    """The program, or where that does not fit the one that takes less of the device's memory; see `predict`.

    given: (params, what is asked for besides, how many of the images count or None).
    frames: of the queries.
    """
    one_confidence = False

    def run(model: Model, given: Any, pixels: jax.Array) -> tuple[Reconstruction, jax.Array | None]:
        nonlocal one_confidence
        params, asked, count = given
        asked = asked if frames is None else (*asked, frames)
        of_them = {} if count is None else {"frames": count}
        prediction = model.apply(params, pixels, *asked, **of_them)
        found = model.reconstruction(prediction, points_from)
        one_confidence = found.conf is found.depth_conf
        if one_confidence:
            found = dataclasses.replace(found, conf=None)  # type: ignore[arg-type]
        return found, prediction.density

    compiled, model = compile_to_fit(partial(_compiled, run, given, pixels, mesh), model)
    return Program(compiled, model, one_confidence)


def compile_to_fit(
    compiled: Callable[[Model], jax.stages.Compiled], model: Model
) -> tuple[jax.stages.Compiled, Model]:
    """compiled(model) and the model; or, where that needs more than the device's memory, of the one with
    low_memory, which may not fit either. On a GPU what is far too large fails while it is compiled: XLA tries
    its kernels on arrays as large as theirs.
    """
    if not model.low_memory:
        try:
            program = compiled(model)
            if fits(program):
                return program, model
        except jax.errors.JaxRuntimeError as error:
            if not out_of_memory(error):
                raise
        model = model.clone(low_memory=True)
    return compiled(model), model


def _compiled(
    run: Callable, params: Any, pixels: np.ndarray, mesh: Mesh | None, model: Model
) -> jax.stages.Compiled:
    """run(model, params, pixels), whose results come to be in the host's memory."""
    function, kind = partial(run, model), _host_memory()
    images = jax.ShapeDtypeStruct(pixels.shape, pixels.dtype)
    host: Any = None
    if mesh is not None:
        lies = partial(along_frames, mesh, frames=pixels.shape[1])
        results = jax.eval_shape(function, params, images)
        host = jax.tree.map(lambda x: lies(x.shape, memory=kind), results)
        images = jax.ShapeDtypeStruct(pixels.shape, pixels.dtype, sharding=lies(pixels.shape))
    elif kind is not None:
        host = jax.sharding.SingleDeviceSharding(jax.local_devices()[0], memory_kind=kind)
    lowered = jax.jit(function, out_shardings=host).lower(params, images)
    with ThreadPoolExecutor(1) as pool:
        reserved = pool.submit(_reserve, lowered, host) if kind is not None else None
        # It runs once: XLA's own Triton products are no faster by what compiling them takes longer.
        gpu = jax.default_backend() == "gpu"
        options: dict[str, str | bool] | None = {"xla_gpu_enable_triton_gemm": False} if gpu else None
        compiled = lowered.compile(compiler_options=options)
        if reserved is not None:
            reserved.result()
    return compiled


def _host_memory() -> str | None:
    """Of a GPU's host what the GPU itself writes to, forty times as fast as JAX copies to other memory, and
    numpy reads as it lies there; None for a CPU.
    """
    kinds = {memory.kind for memory in jax.local_devices()[0].addressable_memories()}
    return None if jax.default_backend() == "cpu" or "pinned_host" not in kinds else "pinned_host"


def _reserve(lowered: jax.stages.Lowered, host: Any) -> None:
    """Makes JAX own as much of the host's memory as the results take, which is slow the first time."""
    held = []
    results = jax.tree.leaves(lowered.out_info)
    shardings = jax.tree.leaves(jax.tree.broadcast(host, lowered.out_info))
    for one, sharding in zip(results, shardings, strict=True):
        zeros = jax.jit(partial(jnp.zeros, one.shape, one.dtype), out_shardings=sharding)
        held.append(jax.block_until_ready(zeros()))


@contextlib.contextmanager
def memory_errors(
    images: Images | None = None,
    params: Any = None,
    compiled: jax.stages.Compiled | None = None,
    of: type[OutOfMemoryError] = OutOfMemoryError,
) -> Iterator[None]:
    """Turns XLA's out-of-memory errors into this one of ours, with an estimate of what is needed."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not out_of_memory(error):
            raise
        raise of(_memory_sentence(images, params, compiled, str(error))) from error


def _memory_sentence(
    images: Images | None, params: Any, compiled: jax.stages.Compiled | None, error: str
) -> str:
    device = jax.local_devices()[0]
    text = f"out of memory on {device.device_kind}: "
    if images is None or params is None:
        text += "the weights alone do not fit"
        advice = "free the device, or convert the weights to bfloat16"
    else:
        frames, height, width, _ = images.pixels.shape
        text += f"{frames} photographs of {width}x{height} pixels need "
        advice = "take fewer photographs, a smaller size, or weights in bfloat16 (sparsity saves no memory)"
        weights = sum(x.nbytes for x in jax.tree.leaves(params))
        needed = needed_bytes(compiled) if compiled is not None else None
        failed = re.search(r"allocat\w+ (\d+) bytes", error)
        if needed is not None:
            text += f"about {_gib(needed)}, of which {_gib(weights)} are weights"
        elif failed:
            text += f"more than {_gib(weights + int(failed[1]))}, of which {_gib(weights)} are weights"
        else:
            text += f"more than the {_gib(weights)} of the weights and what else is free"
        if needed is not None and needed <= (memory_limit() or 0):
            advice = f"free the device of other programs, or {advice}"
    limit = memory_limit()
    text += f", and JAX may use {_gib(limit)}" if limit else ""
    return f"{text}; {advice}"


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def peak_memory() -> dict[str, int | None]:
    """Bytes at the highest: `device` as JAX's allocator counts them (None on a CPU), `host` of this whole
    process.
    """
    host = None
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"device": (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"), "host": host}
