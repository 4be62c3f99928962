"""Which frames a chunk has."""

from __future__ import annotations

import numpy as np

from fastvggt_jax.errors import InputError, whole_number

OVERLAP = 4  # chunks' usual overlap is their length over this
LEAST = 8  # frames of a chunk that is chosen, not asked for


def overlap_of(chunk: int, overlap: int | None) -> int:
    """Frames that two chunks share: those asked for, or else a quarter of them. Raises InputError unless
    chunks of so many frames can overlap by so many.
    """
    whole_number("chunk", chunk, least=2)
    overlap = max(1, chunk // OVERLAP) if overlap is None else whole_number("overlap", overlap, least=1)
    if chunk <= overlap:
        text = f"chunk must be more frames than overlap, not {chunk} with an overlap of {overlap}"
        raise InputError(text, argument="chunk")
    return overlap


def plan(frames: int, chunk: int, overlap: int | None) -> list[np.ndarray]:
    """Numbers of the frames of each chunk, in order: all of one length, so that one program serves them, and
    as few as overlap by at least so many, evenly spread. One of all frames, if they are no more than a chunk.

    overlap: None is a quarter of a chunk.
    """
    overlap = overlap_of(chunk, overlap)
    if frames <= chunk:
        return [np.arange(frames)]
    count = -(-(frames - overlap) // (chunk - overlap))
    starts = np.linspace(0, frames - chunk, count).round().astype(int)
    return [start + np.arange(chunk) for start in starts]


def owners(chunks: list[np.ndarray], frames: int) -> np.ndarray:
    """i64[frames]: the chunk, of those that have a frame, in whose middle it is most."""
    centres = np.array([chunk.mean() for chunk in chunks])
    return np.abs(np.arange(frames)[:, None] - centres).argmin(1)
