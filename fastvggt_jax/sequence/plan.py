"""Which frames a chunk has."""

from __future__ import annotations

import numpy as np

from fastvggt_jax.errors import InputError, whole_number

OVERLAP = 4  # chunks' default overlap is their length over this
LEAST = 8  # frames of a chunk that is chosen, not asked for


def default_overlap(chunk: int) -> int:
    """Frames that two chunks share, if nothing is said: a quarter of them."""
    return max(1, chunk // OVERLAP)


def check_chunk(chunk: int, overlap: int) -> None:
    """Raises InputError unless chunks of so many frames can overlap by so many."""
    whole_number("chunk", chunk, least=2)
    whole_number("overlap", overlap, least=1)
    if chunk <= overlap:
        text = f"chunk must be more frames than overlap, not {chunk} with an overlap of {overlap}"
        raise InputError(text, argument="chunk")


def plan(frames: int, chunk: int, overlap: int) -> list[np.ndarray]:
    """Numbers of the frames of each chunk, in order: all of one length, so that one program serves them, and
    as few as overlap by at least so many, evenly spread. One of all frames, if they are no more than a chunk.
    """
    check_chunk(chunk, overlap)
    if frames <= chunk:
        return [np.arange(frames)]
    count = -(-(frames - overlap) // (chunk - overlap))
    starts = np.linspace(0, frames - chunk, count).round().astype(int)
    return [start + np.arange(chunk) for start in starts]


def owners(chunks: list[np.ndarray], frames: int) -> np.ndarray:
    """i64[frames]: the chunk, of those that have a frame, in whose middle it is most."""
    centres = np.array([chunk.mean() for chunk in chunks])
    return np.abs(np.arange(frames)[:, None] - centres).argmin(1)
