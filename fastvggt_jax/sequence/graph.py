"""Where parts go so that all that is known of how they lie to each other agrees: a graph of similarities."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares
from scipy.sparse import csr_matrix
from scipy.spatial.transform import Rotation

from fastvggt_jax.geometry.alignment import Similarity

# Radians, logarithms of the scale and parts' depths, from where on a loop hardly counts. A true loop's drift
# is shared by all edges around it.
OUTLIER = 0.3
WIDER = (16.0, 8.0, 4.0, 2.0, 1.0, 1.0)  # times as much, round by round: graduated non-convexity
STEP = 1e-6  # of differences
UNIT = Similarity(1.0, np.eye(3), np.zeros(3))


class Edge(NamedTuple):
    """similarity: from the world of part `second` to that of part `first`. loop: of what looked alike, and
    may be wrong. about: the middle of what both have, in the world of `second`, where the edge may give.
    """

    first: int
    second: int
    similarity: Similarity
    loop: bool = False
    about: Float[np.ndarray, " 3"] = np.zeros(3)


def components(parts: int, edges: list[Edge]) -> list[list[int]]:
    """Which parts hang together, each in order."""
    root = list(range(parts))
    for edge in edges:
        _unite(root, edge)
    return [[i for i in range(parts) if _root(root, i) == r] for r in range(parts) if _root(root, r) == r]


def _root(root: list[int], i: int) -> int:
    while root[i] != i:
        i = root[i]
    return i


def _unite(root: list[int], edge: Edge) -> bool:
    """Whether the edge's ends did not hang together before."""
    one, other = sorted((_root(root, edge.first), _root(root, edge.second)))
    root[other] = one
    return one != other


def chain(nodes: list[int], edges: list[Edge]) -> dict[int, Similarity]:
    """Of parts that hang together where each goes in the first one's world, by as few edges as connect them,
    of which the first are trusted most.
    """
    root = list(range(max(nodes) + 1))
    found, near = {nodes[0]: UNIT}, {node: list[tuple[int, Similarity]]() for node in nodes}
    for edge in edges:
        if edge.first in near and _unite(root, edge):
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

    def inverse(self) -> _Many:
        back = self.rotation.swapaxes(1, 2)
        return _Many(
            1 / self.scale, back, -np.einsum("nij,nj->ni", back, self.translation) / self.scale[:, None]
        )

    def after(self, first: _Many) -> _Many:
        moved = self.scale[:, None] * np.einsum("nij,nj->ni", self.rotation, first.translation)
        return _Many(self.scale * first.scale, self.rotation @ first.rotation, moved + self.translation)


def optimise(
    start: dict[int, Similarity], edges: list[Edge], depth: Float[np.ndarray, " parts"]
) -> dict[int, Similarity]:
    """The similarities, from `start`, under which the edges agree best, the first part's kept: least squares
    of what each edge is off by, in rotation, logarithm of the scale, and at its middle, over the part's
    median depth. Loops are reweighted, from all alike to Geman and McClure's weights by graduated
    non-convexity (Yang et al. 2020, arXiv 1909.08605), so that a wrong one is let go. By scipy, which comes
    with JAX.

    edges: of parts in `start` alone.
    """
    nodes = list(start)
    place = {node: i for i, node in enumerate(nodes)}
    first = np.array([place[edge.first] for edge in edges])
    second = np.array([place[edge.second] for edge in edges])
    loops = np.array([edge.loop for edge in edges])
    back = _Many.of([edge.similarity.inverse() for edge in edges])
    begun, unit = _Many.of([start[node] for node in nodes]), depth[[edge.second for edge in edges]]
    about = np.array([edge.about for edge in edges])
    step = depth[nodes[0]]  # of a translation, in the first one's world

    def moved(x: np.ndarray, of: np.ndarray) -> _Many:
        """These parts by steps x [n, 7] from where they are: turned and scaled about their origins."""
        return _Many(
            begun.scale[of] * np.exp(x[:, 0]),
            Rotation.from_rotvec(x[:, 1:4]).as_matrix() @ begun.rotation[of],
            begun.translation[of] + x[:, 4:] * step,
        )

    def off(x_first: np.ndarray, x_second: np.ndarray) -> np.ndarray:
        """[edges, 7]"""
        error = back.after(moved(x_first, first).inverse().after(moved(x_second, second)))
        turned = Rotation.from_matrix(error.rotation).as_rotvec()
        there = error.scale[:, None] * np.einsum("nij,nj->ni", error.rotation, about) + error.translation
        return np.column_stack([np.log(error.scale), turned, (there - about) / unit[:, None]])

    def of_all(x: np.ndarray) -> np.ndarray:
        return np.concatenate([np.zeros((1, 7)), x.reshape(-1, 7)])

    def residuals(x: np.ndarray) -> np.ndarray:
        x = of_all(x)
        return (weights[:, None] * off(x[first], x[second])).ravel()

    rows = np.arange(7 * len(edges)).reshape(-1, 7, 1)

    def derivative(x: np.ndarray) -> csr_matrix:
        """By differences: an edge depends on its two parts alone, so that all edges' are two times seven."""
        ends = [of_all(x)[first], of_all(x)[second]]
        values, at, here = [], [], off(*ends)
        for side, nodes_of in enumerate((first, second)):
            for k in range(7):
                there = list(ends)
                there[side] = ends[side] + STEP * np.eye(7)[k]
                values.append((off(*there) - here) / STEP * weights[:, None])
                at.append(7 * (nodes_of - 1) + k)
        columns = np.broadcast_to(np.stack(at, -1)[:, None], (len(edges), 7, 14))
        free = columns >= 0  # the first part stays
        shape = (7 * len(edges), 7 * (len(nodes) - 1))
        where = np.broadcast_to(rows, columns.shape)[free], columns[free]
        return csr_matrix((np.stack(values, -1)[free], where), shape=shape)

    x, weights = np.zeros(7 * (len(nodes) - 1)), np.ones(len(edges))
    for wider in WIDER if loops.any() else (1.0,):
        x = least_squares(residuals, x, derivative, max_nfev=50).x
        far = np.square(off(of_all(x)[first], of_all(x)[second])).sum(-1) / (wider * OUTLIER**2)
        weights = np.where(loops, 1 / (1 + far), 1.0)  # the square root of the weight
    x = least_squares(residuals, x, derivative, max_nfev=50).x
    found = moved(of_all(x), np.arange(len(nodes)))
    return {
        node: Similarity(float(found.scale[i]), found.rotation[i], found.translation[i])
        for i, node in enumerate(nodes)
    }
