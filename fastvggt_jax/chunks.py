"""All photographs at once while they fit, which is exact, and else in chunks that are joined."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fastvggt_jax.io.scenes import piece_folder
from fastvggt_jax.models.base import Model
from fastvggt_jax.models.conditions import Conditions
from fastvggt_jax.models.memory import memory_limit
from fastvggt_jax.models.prediction import Reconstruction
from fastvggt_jax.programs import DoesNotFit, Step, memory_errors
from fastvggt_jax.refine.queries import Queries
from fastvggt_jax.sequence import LEAST, Joined, Piece, describe, join, overlap_of, plan
from fastvggt_jax.sources import Images

Run = Callable[..., tuple[Reconstruction, list[float] | None]]


def run_all(
    run: Run,
    model: Model,
    params: Any,
    images: Images,
    step: Step,
    *,
    output: Path,
    chunk: int | None = None,
    overlap: int | None = None,
    loops: bool = False,
    queries: Queries | None = None,
    conditions: Conditions | None = None,
) -> tuple[Joined, list[float] | None, list[np.ndarray] | None]:
    """All photographs at once, or in chunks if that is asked for or they do not fit: what was found, the
    density, and the chunks, None if there are none.

    run: `programs.predict` of images, with what else it takes.
    output: where the pieces are going to be written, for what is said of them.
    chunk, overlap, loops: see `sequence.reconstruct_sequence`; chunk None: as many as fit.

    Raises OutOfMemoryError where not even chunks fit.
    """
    frames = len(images.names)

    def in_chunks(
        chunk: int, overlap: int | None
    ) -> tuple[Joined, list[float] | None, list[np.ndarray] | None]:
        """No more than one chunk's results are on the device at a time."""
        chunks, densities = plan(frames, chunk, overlap), []

        def found(numbers: np.ndarray) -> Reconstruction:
            some = jax.tree.map(lambda x: x[:, numbers], conditions)
            result, density = run(images.some(numbers), conditions=some, bucket=False)
            densities.append(density)
            return result

        seen = None
        if loops and len(chunks) > 2:  # two are neighbours
            with step("look for loops"), memory_errors(images.some(chunks[0]), params):
                seen = describe(model, params, images.pixels)
        joined = join(found, chunks, images.shown(), seen)
        _warn_of_lonely(conditions, chunks)
        known = [density for density in densities if density is not None]
        _warn_of_joints(joined, chunks, images.names, output, loops=loops)
        return joined, [round(float(x), 4) for x in np.mean(known, 0)] if known else None, chunks

    if chunk is not None and frames > chunk:
        return in_chunks(chunk, overlap)
    if chunk is not None:
        text = f"{frames} photographs are no more than a chunk of {chunk}: they are reconstructed at once"
        warnings.warn(text, stacklevel=2)
    try:
        result, density = run(images, queries=queries, conditions=conditions)
        about = " and ".join(["overlap"] * (overlap is not None) + ["loops"] * loops)
        if about:
            text = f"{about} did nothing: it is about chunks, and all photographs were reconstructed at once"
            warnings.warn(text, stacklevel=2)
        return Joined([Piece(np.arange(frames), result)], [], [], []), density, None
    except DoesNotFit as error:
        if queries is not None or chunk is not None or jax.process_count() > 1:
            raise
        too_many = error
        for one in (error, error.__cause__):  # what it was tried with, on the device too
            traceback.clear_frames(one.__traceback__ if one is not None else None)
    chunk = _largest_chunk(frames, too_many.needs, params)
    while chunk >= LEAST:
        shared = min(overlap_of(chunk, None) if overlap is None else overlap, chunk // 2)
        text = f"{frames} photographs do not fit into memory at once: they are reconstructed in chunks of "
        text += f"{chunk} that overlap by {shared} or more, which is less exact"
        try:
            found = in_chunks(chunk, shared)
        except DoesNotFit:
            chunk = chunk * 4 // 5
            continue
        warnings.warn(text, stacklevel=2)
        return found
    raise too_many


def _warn_of_lonely(conditions: Conditions | None, chunks: list[np.ndarray]) -> None:
    """Of poses that the model drops, which of all photographs together are several."""
    if conditions is None or conditions.pose_mask is None:
        return
    posed = np.asarray(conditions.pose_mask)[0]
    alone = sum(posed[chunk].sum() == 1 for chunk in chunks)
    if alone:
        text = (
            f"{alone} of {len(chunks)} chunks have one photograph of a known camera alone, which says nothing"
        )
        warnings.warn(f"{text} there: the model drops it; larger chunks may have two", stacklevel=3)


def _largest_chunk(frames: int, needs: int | None, params: Any) -> int:
    """About how many of `frames` fit, which together need so many bytes, with a twentieth to spare."""
    limit = memory_limit()
    weights = sum(x.nbytes for x in jax.tree.leaves(params))
    if needs is None or limit is None or needs <= weights:
        return frames // 2
    return min(int(0.95 * frames * (limit - weights) / (needs - weights)), frames - 1)


def _warn_of_joints(
    joined: Joined, chunks: list[np.ndarray], names: Sequence[str], output: Path, *, loops: bool
) -> None:
    """Of chunks that do not hang together, or hardly."""
    for text in joined.warnings(chunks, names):
        warnings.warn(text, stacklevel=3)
    if len(joined.pieces) > 1:
        folders = f"{output / piece_folder(0)} to {piece_folder(len(joined.pieces) - 1)}"
        text = f"the photographs come out as {len(joined.pieces)} scenes that do not hang together: they are "
        text += f"written apart, {folders}; a larger overlap or more photographs between them may help"
        warnings.warn(text, stacklevel=3)
    if loops and not joined.loops:
        few = ": two chunks are neighbours, and have none" if len(chunks) < 3 else ""
        warnings.warn(f"no loop was found that could be closed{few}", stacklevel=3)
