"""Chunks of a sequence, reconstructed one after another and brought into one world."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from fastvggt_jax.geometry.alignment import Similarity
from fastvggt_jax.models.prediction import Reconstruction
from fastvggt_jax.sequence.fit import Fit, Part, fit
from fastvggt_jax.sequence.graph import Edge, chain, components, optimise
from fastvggt_jax.sequence.loops import AGREES, AGREES_AT_LEAST, candidates, one_place, together
from fastvggt_jax.sequence.plan import owners

Run = Callable[[np.ndarray], Reconstruction]
MAPS = ("depth", "depth_conf", "points", "conf")
CAMERAS = ("cam_from_world", "K", "clipped")
POOR = 0.1  # of the distance: what chunks that belong together are hardly off by


class Piece(NamedTuple):
    """Frames that hang together. found: their reconstruction, [1, f, ...], in one world."""

    frames: Int[np.ndarray, " f"]
    found: Reconstruction


@dataclasses.dataclass
class Joined:
    """Attributes:
    pieces: one, unless chunks share no point that both are sure of.
    residuals: of neighbouring chunks, over the distance; None of two that do not hang together.
    loops: pairs of frames by which the sequence was closed.
    lines: whether what neighbouring chunks share lies on a line, see `fit`.
    """

    pieces: list[Piece]
    residuals: list[float | None]
    loops: list[tuple[int, int]]
    lines: list[bool]

    def warnings(self, chunks: Sequence[np.ndarray], names: Sequence[str]) -> list[str]:
        """Of neighbours that do not hang together, or hardly, a sentence each."""
        found = []
        for (one, other), residual, line in zip(pairwise(chunks), self.residuals, self.lines, strict=True):
            where = f"the chunks from {names[one[0]]} and from {names[other[0]]} on"
            if residual is None:
                found.append(f"{where} share no points that both are sure of")
            elif residual > POOR:
                off = f"half of what both see is {residual:.0%} of its distance off or more"
                found.append(f"{where} hardly agree: {off}")
            elif line:
                how = "their cameras alone say how they lie about it"
                found.append(f"what {where} share lies on a line: {how}")
        return found

    def account(self, chunks: Sequence[np.ndarray]) -> dict[str, Any]:
        """JSON-able."""
        return {
            "chunks": [[int(chunk[0]), int(chunk[-1])] for chunk in chunks],
            "residuals": [None if r is None else round(r, 5) for r in self.residuals],
            "loops": [list(pair) for pair in self.loops],
            "pieces": [len(piece.frames) for piece in self.pieces],
        }


def join(
    run: Run,
    chunks: list[np.ndarray],
    shown: Bool[np.ndarray, "F H W"],
    descriptors: Float[np.ndarray, "F D"] | None = None,
) -> Joined:
    """The whole sequence.

    Args:
      run: frames' numbers -> their reconstruction [1, f, H, W, ...], in whatever world and unit.
      chunks: see `plan`.
      shown: see `Images.shown`.
      descriptors: of length 1, by which loops are looked for; None: they are not.

    Returns the frames of each chunk in the first one's world and unit; each frame is the chunk's in whose
    middle it is most.
    """
    frames = len(shown)
    owner = owners(chunks, frames)
    parts: list[Part] = []
    maps: dict[str, np.ndarray] = {}
    scales: list[float | None] = []  # metres per unit
    for number, chunk in enumerate(chunks):
        found = run(chunk)
        parts.append(Part.of(chunk, found, shown[chunk]))
        scales.append(None if found.metric_scale is None else float(np.asarray(found.metric_scale)[0]))
        own = owner[chunk] == number
        for name in (*MAPS, *CAMERAS):
            values = getattr(found, name)
            if values is None:
                continue
            if name == "conf" and found.conf is found.depth_conf:  # which one array holds
                continue
            values = np.asarray(values)[0]
            if name not in maps:
                maps[name] = np.empty((frames, *values.shape[1:]), values.dtype)
            maps[name][chunk[own]] = values[own]
        conf_floor = found.conf_floor
        del found, values  # the next chunk's take their place
    fits = [fit(one, other) for one, other in zip(parts, parts[1:], strict=False)]
    edges = _edges(parts, fits)
    loops: list[tuple[int, int]] = []
    if descriptors is not None and len(chunks) > 1:
        more, loops = _close(run, chunks, owner, shown, parts, fits, descriptors)
        parts, edges = parts + more, edges + _edges_of(parts, more)
    pieces = [
        _piece([i for i in nodes if i < len(chunks)], nodes, parts, edges, owner, maps, scales, conf_floor)
        for nodes in components(len(parts), edges)
    ]
    residuals = [None if one is None else one.residual for one in fits]
    lines = [one is not None and one.line for one in fits]
    return Joined([piece for piece in pieces if piece is not None], residuals, loops, lines)


def _edges(parts: list[Part], fits: Sequence[Fit | None]) -> list[Edge]:
    """Of neighbours, and of other chunks that share frames, which overlap by more than half."""
    edges = [
        Edge(i, i + 1, one.similarity, False, one.about) for i, one in enumerate(fits) if one is not None
    ]
    for i in range(len(parts)):
        for j in range(i + 2, len(parts)):
            found = fit(parts[i], parts[j]) if parts[i].frames[-1] >= parts[j].frames[0] else None
            edges += [] if found is None else [Edge(i, j, found.similarity, False, found.about)]
    return edges


def _edges_of(parts: list[Part], more: list[Part]) -> list[Edge]:
    """Of parts that close a loop to the chunks that they share frames with."""
    return [
        Edge(i, len(parts) + j, found.similarity, True, found.about)
        for j, part in enumerate(more)
        for i, one in enumerate(parts)
        if (found := fit(one, part)) is not None
    ]


def _close(
    run: Run,
    chunks: list[np.ndarray],
    owner: np.ndarray,
    shown: np.ndarray,
    parts: list[Part],
    fits: Sequence[Fit | None],
    descriptors: np.ndarray,
) -> tuple[list[Part], list[tuple[int, int]]]:
    """Parts of frames of two places that look alike, reconstructed together, where both places come out as
    their own chunks have them.
    """
    length, frames = len(chunks[0]), len(shown)
    overlap = length - int(chunks[1][0] - chunks[0][0])
    usual = np.median([one.residual for one in fits if one is not None] or [0.0])
    limit = max(AGREES * usual, AGREES_AT_LEAST)
    more, loops = [], []
    for pair in candidates(descriptors, 2 * length - overlap, overlap, len(chunks)):  # not of neighbours
        both = together(pair, frames, length)
        part = Part.of(both, run(both), shown[both])
        homes = [parts[owner[at]] for at in pair]
        found = [fit(home, part) for home in homes]
        agree = all(one is not None and one.residual <= limit for one in found)
        if agree and one_place(part, len(both) // 2):
            more.append(part)
            loops.append(pair)
    return more, loops


def _piece(
    own: list[int],
    nodes: list[int],
    parts: list[Part],
    edges: list[Edge],
    owner: np.ndarray,
    maps: dict[str, np.ndarray],
    scales: list[float | None],
    conf_floor: float,
) -> Piece | None:
    frames = np.nonzero(np.isin(owner, own))[0]
    if not len(frames):
        return None
    depth = np.array([np.median(part.depth) for part in parts])
    edges = [edge for edge in edges if edge.first in nodes]
    where = chain(nodes, edges)
    if len(nodes) > 1 and len(edges) >= len(nodes):  # else the chain agrees with all
        where = optimise(where, edges, depth)
    metres = [scale / where[node].scale for node in own if (scale := scales[node]) is not None]
    if metres:  # as of all at once, the unit is the metre
        to_metres = Similarity(float(np.median(metres)), np.eye(3), np.zeros(3))
        where = {node: to_metres.after(one) for node, one in where.items()}
    whole = len(frames) == len(owner)
    arrays = {name: values if whole else values[frames] for name, values in maps.items()}
    for i, frame in enumerate(frames):  # one by one: no second copy of all
        similarity = where[int(owner[frame])]
        arrays["points"][i] = similarity(arrays["points"][i])
        arrays["depth"][i] *= similarity.scale
        arrays["cam_from_world"][i] = similarity.of_cameras(arrays["cam_from_world"][i])
    values: dict[str, Any] = {"K": None} | {name: values[None] for name, values in arrays.items()}
    values.setdefault("conf", values["depth_conf"])
    metric_scale: Any = np.ones(1, np.float32) if metres else None
    return Piece(frames, Reconstruction(**values, metric_scale=metric_scale, conf_floor=conf_floor))
