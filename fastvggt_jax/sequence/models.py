"""Sequences by a model: what `reconstruct --chunk` does, as a function."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from fastvggt_jax.models.base import Model
from fastvggt_jax.models.prediction import Reconstruction
from fastvggt_jax.scene import Scene, to_scene
from fastvggt_jax.sequence.join import join
from fastvggt_jax.sequence.plan import plan
from fastvggt_jax.sources import Images

TOGETHER = 8  # frames that the encoder looks at in one run


def reconstruct_sequence(
    model: Model,
    params: Any,
    images: Images,
    *,
    chunk: int = 120,
    overlap: int | None = None,
    loops: bool = False,
    points_from: str | None = None,
) -> list[Scene]:
    """The scene of any number of images, in chunks of so many that overlap and are joined by similarities;
    exactly what the model says of all at once, if they are no more than a chunk. Several scenes, in the order
    of their frames, where chunks share no points that both are sure of.

    Args:
      overlap: frames that two chunks share at least; a quarter of a chunk if None.
      loops: whether places that were come back to are looked for, by the model's encoder, and closed.
      points_from: see `Model.reconstruction`.

    Raises InputError for a chunk no longer than its overlap, an overlap below 1, loops of a model without an
      encoder of single frames, and as `to_scene`.
    """
    frames = len(images.names)
    chunks = plan(frames, chunk, overlap)

    @jax.jit
    def found(params: Any, pixels: jax.Array) -> Reconstruction:
        return model.reconstruction(model.apply(params, pixels), points_from)

    def run(numbers: np.ndarray) -> Reconstruction:
        return jax.device_get(found(params, images.pixels[numbers][None]))

    seen = describe(model, params, images.pixels) if loops and len(chunks) > 2 else None
    joined = join(run, chunks, images.shown(), seen)
    for text in joined.warnings(chunks, images.names):
        warnings.warn(text, stacklevel=2)
    pieces = joined.pieces
    return [
        to_scene(piece.found, images if len(pieces) == 1 else images.some(piece.frames)) for piece in pieces
    ]


def describe(model: Model, params: Any, pixels: UInt8[np.ndarray, "F H W 3"]) -> Float[np.ndarray, "F D"]:
    """`Model.describe` of each frame, a few at a time."""
    see, size = jax.jit(partial(model.apply, method="describe")), min(TOGETHER, len(pixels))
    starts = [min(start, len(pixels) - size) for start in range(0, len(pixels), size)]
    found: dict[int, np.ndarray] = {}
    for start in starts:
        some = np.asarray(see(params, pixels[start : start + size][None]))[0]
        found |= dict(zip(range(start, start + size), some, strict=True))
    return np.stack([found[i] for i in range(len(pixels))])
