"""Where parts go so that all that is known of how they lie to each other agrees: a graph of similarities."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares
from scipy.sparse import lil_matrix
from scipy.spatial.transform import Rotation

from fastvggt_jax.geometry.alignment import Similarity

# Radians, shares of the scale and of a part's depth, beyond which an edge counts by a logarithm: first so
# wide that a drift still pulls, then so narrow that a wrong loop does not.
OUTLIERS = (0.3, 0.1)
MANY = 100  # parts, from where on the derivatives that are 0 are left out
UNIT = Similarity(1.0, np.eye(3), np.zeros(3))


class Edge(NamedTuple):
    """similarity: from the world of part `second` to that of part `first`; middle: f64[3], in the second's,
    of what they share.
    """

    first: int
    second: int
    similarity: Similarity
    middle: np.ndarray


def components(parts: int, edges: list[Edge]) -> list[list[int]]:
    """Which parts hang together, each in order."""
    root = list(range(parts))

    def find(i: int) -> int:
        while root[i] != i:
            i = root[i]
        return i

    for edge in edges:
        one, other = sorted((find(edge.first), find(edge.second)))
        root[other] = one
    return [[i for i in range(parts) if find(i) == r] for r in range(parts) if find(r) == r]


def chain(nodes: list[int], edges: list[Edge]) -> dict[int, Similarity]:
    """Of parts that hang together where each goes in the first one's world, by as few edges as connect them,
    of which the first are trusted most.
    """
    root = {node: node for node in nodes}

    def find(i: int) -> int:
        while root[i] != i:
            i = root[i]
        return i

    found, near = {nodes[0]: UNIT}, {node: list[tuple[int, Similarity]]() for node in nodes}
    for edge in edges:
        if edge.first in root and (one := find(edge.first)) != (other := find(edge.second)):
            root[other] = one
            near[edge.first].append((edge.second, edge.similarity))
            near[edge.second].append((edge.first, edge.similarity.inverse()))
    waiting = [nodes[0]]
    while waiting:
        here = waiting.pop()
        for there, similarity in near[here]:
            if there not in found:
                found[there] = found[here].after(similarity)
                waiting.append(there)
    return {node: found[node] for node in nodes}


class _Many(NamedTuple):
    """Similarities, one per row."""

    scale: Float[np.ndarray, " n"]
    rotation: Float[np.ndarray, "n 3 3"]
    translation: Float[np.ndarray, "n 3"]

    @classmethod
    def of(cls, them: list[Similarity]) -> _Many:
        return cls(
            np.array([one.scale for one in them]),
            np.array([one.rotation for one in them]),
            np.array([one.translation for one in them]),
        )

    def at(self, rows: np.ndarray) -> _Many:
        return _Many(self.scale[rows], self.rotation[rows], self.translation[rows])

    def inverse(self) -> _Many:
        back = self.rotation.swapaxes(1, 2)
        return _Many(
            1 / self.scale, back, -np.einsum("nij,nj->ni", back, self.translation) / self.scale[:, None]
        )

    def after(self, first: _Many) -> _Many:
        return _Many(self.scale * first.scale, self.rotation @ first.rotation, self(first.translation))

    def __call__(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        turned = np.einsum("nij,nj->ni", self.rotation, points)
        return self.scale[:, None] * turned + self.translation


def optimise(
    start: dict[int, Similarity], edges: list[Edge], depth: Float[np.ndarray, " parts"]
) -> dict[int, Similarity]:
    """The similarities, from `start`, under which the edges agree best, the first part's kept: least squares
    of what each edge is off by, in rotation, logarithm of the scale, and where it puts the middle of what the
    two share, over the part's median depth; robust (Cauchy), so that a wrong loop is let go. By scipy, which
    is there: a hundred parts are no work for it.
    """
    nodes = list(start)
    place = {node: i for i, node in enumerate(nodes)}
    first, second = (np.array([place[edge[side]] for edge in edges]) for side in (0, 1))
    back = _Many.of([edge.similarity.inverse() for edge in edges])
    begun, unit = _Many.of([start[node] for node in nodes]), depth[[edge.second for edge in edges]]
    middle = np.array([edge.middle for edge in edges])

    def moved(x: np.ndarray) -> _Many:
        """By small steps from where they are: turned and scaled about their origins."""
        x = np.concatenate([np.zeros((1, 7)), x.reshape(-1, 7)])
        return _Many(
            begun.scale * np.exp(x[:, 0]),
            Rotation.from_rotvec(x[:, 1:4]).as_matrix() @ begun.rotation,
            begun.translation + x[:, 4:] * depth[nodes[0]],
        )

    def off(x: np.ndarray) -> np.ndarray:
        there = moved(x)
        error = back.after(there.at(first).inverse().after(there.at(second)))
        turned = Rotation.from_matrix(error.rotation).as_rotvec()
        away = (error(middle) - middle) / unit[:, None]
        return np.column_stack([np.log(error.scale), turned, away]).ravel()

    depends = None
    if len(nodes) > MANY:
        depends = lil_matrix((7 * len(edges), 7 * (len(nodes) - 1)), dtype=int)
        for row, ends in enumerate(zip(first, second, strict=True)):
            for node in ends:
                if node:
                    depends[7 * row : 7 * row + 7, 7 * (node - 1) : 7 * node] = 1
    x = np.zeros(7 * (len(nodes) - 1))
    for outlier in OUTLIERS:
        x = least_squares(off, x, jac_sparsity=depends, loss="cauchy", f_scale=outlier, max_nfev=50).x
    found = moved(x)
    return {
        node: Similarity(float(found.scale[i]), found.rotation[i], found.translation[i])
        for i, node in enumerate(nodes)
    }
