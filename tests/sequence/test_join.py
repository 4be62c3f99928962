"""Sequences in chunks: what a chunk holds, how two are brought together, and what closing a loop is worth."""

import dataclasses
import weakref

import numpy as np
import pytest

from fastvggt_jax.errors import InputError
from fastvggt_jax.geometry.alignment import Similarity
from fastvggt_jax.sequence.fit import Part, fit
from fastvggt_jax.sequence.graph import Edge, chain, components, optimise
from fastvggt_jax.sequence.join import join
from fastvggt_jax.sequence.loops import candidates, together
from fastvggt_jax.sequence.plan import owners, plan
from tests.sequence.block import Block, rotation


@pytest.mark.parametrize(
    "frames, chunk, overlap", [(600, 120, 30), (121, 120, 30), (50, 7, 6), (9, 4, 1), (13, 5, 2)]
)
def test_chunks_are_of_one_length_and_overlap_enough(frames, chunk, overlap):
    chunks = plan(frames, chunk, overlap)
    assert {len(one) for one in chunks} == {chunk}
    assert chunks[0][0] == 0 and chunks[-1][-1] == frames - 1
    shared = [len(np.intersect1d(a, b)) for a, b in zip(chunks, chunks[1:], strict=False)]
    assert min(shared) >= overlap
    assert len(chunks) == 1 + -(-(frames - chunk) // (chunk - overlap))  # no fewer could
    owner = owners(chunks, frames)
    assert all(frame in chunks[one] for frame, one in enumerate(owner)) and (np.diff(owner) >= 0).all()


def test_few_frames_are_one_chunk():
    (chunk,) = plan(5, 120, 30)
    assert chunk.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "chunk, overlap, message",
    [
        (30, 30, "chunk must be more frames than overlap, not 30 with an overlap of 30"),
        (30, 0, "overlap must be a whole number, at least 1, not 0"),
        (1, 1, "chunk must be a whole number, at least 2, not 1"),
    ],
)
def test_chunks_that_do_not_overlap_are_refused(chunk, overlap, message):
    with pytest.raises(InputError, match=message):
        plan(100, chunk, overlap)


def test_similarities_compose_and_invert():
    one = Similarity(2.0, rotation([0.3, 0.1, -0.2]), np.array([1.0, 2, 3]))
    other = Similarity(0.3, rotation([-1.3, 0.5, 2]), np.array([-1.0, 0, 5]))
    x = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(one.after(other)(x), one(other(x)))
    np.testing.assert_allclose(one.inverse()(one(x)), x)
    camera = np.concatenate([rotation([1, 2, 3]), [[1], [2], [3]]], 1)
    seen = lambda camera, x: x @ camera[:, :3].T + camera[:, 3]
    np.testing.assert_allclose(seen(one.of_cameras(camera), one(x)), one.scale * seen(camera, x))


def part(block, frames, **how):
    frames = np.asarray(frames)
    return Part.of(frames, block.reconstruct(frames, **how), block.shown[frames])


def test_two_parts_are_brought_together_whatever_a_third_of_a_frame_says():
    block = Block(40)
    first, second = part(block, range(10)), part(block, range(6, 16), noise=0.01, outliers=0.3)
    found = fit(first, second)
    middle = found.similarity(second.points[2:4]) - first.points[8:]
    distance = np.linalg.norm(first.points[8:] - first.points[8:].mean(1, keepdims=True), axis=-1).mean()
    cameras = found.similarity.of_cameras(second.cam_from_world[:4]) - first.cam_from_world[6:]
    assert np.abs(cameras[..., :3]).max() < 3e-3 and np.abs(cameras[..., 3]).max() < 3e-3 * distance
    assert 0.003 < found.residual < 0.03 and np.median(np.abs(middle)) < 0.05 * distance


def test_points_on_a_line_are_turned_by_the_cameras():
    block = Block(40)
    first, second = part(block, range(10)), part(block, range(6, 16))
    truth = fit(first, second).similarity
    line = np.linspace(0, 1, first.points.shape[1])[:, None] * [1.0, 2, 3]
    onto = truth.inverse()(line)
    narrow = lambda one, points: dataclasses.replace(one, points=np.broadcast_to(points, one.points.shape))
    found = fit(narrow(first, line), narrow(second, onto))
    np.testing.assert_allclose(found.similarity.rotation, truth.rotation, atol=1e-3)
    assert found.line and not fit(first, second).line


def test_nothing_that_both_are_sure_of_brings_nothing_together():
    block = Block(40)
    first, second = part(block, range(10)), part(block, range(6, 16))
    assert fit(first, part(block, range(10, 16))) is None
    assert fit(first, dataclasses.replace(second, conf=np.zeros_like(second.conf))) is None


def test_chunks_of_the_truth_are_the_truth():
    block = Block(40)
    joined = join(block.reconstruct, plan(40, 12, 4), block.shown)
    (piece,) = joined.pieces
    whole = block.reconstruct(np.arange(40))
    assert block.error(piece.found) < 1e-3 and max(joined.residuals) < 1e-5
    # Depth, points and cameras are of one world and one unit.
    found = piece.found
    seen = np.einsum("fij,fhwj->fhwi", found.cam_from_world[0][..., :3], found.points[0])
    seen += found.cam_from_world[0][:, None, None, :, 3]
    np.testing.assert_allclose(seen[..., 2], found.depth[0], rtol=1e-3)
    ratio = found.depth[0] / whole.depth[0]
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-3)
    assert joined.account(plan(40, 12, 4))["pieces"] == [40]


def test_one_chunks_results_are_there_at_a_time():
    block, alive = Block(40), []

    def run(frames):
        assert not any(one() is not None for one in alive)
        found = block.reconstruct(frames)
        alive.extend(weakref.ref(x) for x in (found.points, found.depth, found.cam_from_world))
        return found

    join(run, plan(40, 12, 4), block.shown)
    assert len(alive) > 9


def test_closing_a_loop_takes_most_of_the_drift():
    """Chunks bend a little, always to the same side, as reconstructions of long ways do."""
    errors = {}
    for closed in (False, True):
        block = Block(72, again=8)
        bent = lambda frames, block=block: block.reconstruct(frames, bend=0.05, noise=0.01)
        joined = join(bent, plan(80, 16, 4), block.shown, block.descriptors if closed else None)
        (piece,) = joined.pieces
        errors[closed] = block.error(piece.found)
        assert bool(joined.loops) == closed
    assert errors[True] < 0.2 * errors[False]  # edges that gave at a far origin would be at 0.3


def test_a_loop_that_does_not_agree_is_let_go():
    """All places look alike, and what is reconstructed of two together is neither."""
    block = Block(60)

    def lying(frames):
        return block.reconstruct(frames, outliers=float(np.diff(frames).max() > 1))

    alike = np.zeros((60, 1)) + 1.0
    joined = join(lying, plan(60, 12, 4), block.shown, alike)
    assert not joined.loops and block.error(joined.pieces[0].found) < 1e-3


def test_a_loop_whose_halves_are_not_as_their_chunks_have_them_is_let_go():
    block = Block(54, again=6)
    for noise, closes in ((0.01, True), (0.2, False)):
        poor = lambda frames, noise=noise: block.reconstruct(
            frames, noise=noise * (np.diff(frames).max() > 1)
        )
        assert bool(join(poor, plan(60, 12, 4), block.shown, block.descriptors).loops) == closes


def test_one_wrong_edge_among_right_ones_is_let_go():
    rng = np.random.default_rng(0)
    truth = [
        Similarity(np.exp(rng.normal() / 3), rotation(rng.normal(size=3)), rng.normal(size=3))
        for _ in range(8)
    ]
    between = lambda i, j: truth[i].inverse().after(truth[j])
    edges = [Edge(i, i + 1, between(i, i + 1)) for i in range(7)] + [
        Edge(0, 7, between(0, 7), loop=True),
        Edge(1, 6, between(1, 6), loop=True),
    ]
    edges.append(Edge(2, 5, Similarity(3.0, rotation([1, 1, 1]), np.ones(3) * 5), loop=True))
    nodes = list(range(8))
    found = optimise(chain(nodes, edges), edges, np.ones(8))
    for i, one in found.items():
        right = truth[0].inverse().after(truth[i])
        np.testing.assert_allclose(one.rotation, right.rotation, atol=1e-3)
        np.testing.assert_allclose(one.translation, right.translation, atol=2e-3)


def test_two_places_that_come_out_apart_close_no_loop():
    """Each half of what is reconstructed together is right, but anywhere to the other."""
    block = Block(60)

    def apart(frames):
        found = block.reconstruct(frames)
        if np.diff(frames).max() == 1:
            return found
        away = Similarity(1.0, rotation([0.5, 0, 0]), np.array([500.0, 0, 0]))
        second = np.arange(len(frames)) >= len(frames) // 2
        points = np.where(second[None, :, None, None, None], away(found.points), found.points)
        cameras = np.where(
            second[None, :, None, None], away.of_cameras(found.cam_from_world), found.cam_from_world
        )
        return dataclasses.replace(found, points=points, cam_from_world=cameras)

    joined = join(apart, plan(60, 12, 4), block.shown, np.ones((60, 1)))
    assert not joined.loops and block.error(joined.pieces[0].found) < 1e-3


def test_chunks_that_share_nothing_are_pieces_of_their_own():
    block = Block(40)
    chunks = plan(40, 12, 4)

    def blind(frames):
        """Nothing is sure of the frames that the second chunk and the third share."""
        found = block.reconstruct(frames)
        fog = np.isin(frames, np.arange(14, 19))[None, :, None, None]
        conf = np.where(fog, 0, found.conf).astype(np.float32)
        return dataclasses.replace(found, conf=conf, depth_conf=conf, conf_floor=1.0)

    joined = join(blind, chunks, block.shown)
    assert len(joined.pieces) == 2 and None in joined.residuals
    assert np.concatenate([piece.frames for piece in joined.pieces]).tolist() == list(range(40))
    for piece in joined.pieces:
        assert (
            piece.found.depth.shape[1] == len(piece.frames) and block.error(piece.found, piece.frames) < 1e-3
        )
    assert components(3, []) == [[0], [1], [2]]


def test_loops_are_looked_for_in_distant_frames_that_look_alike():
    angles = np.concatenate(
        [np.linspace(0, 3, 40), np.linspace(0, 0.4, 10)]
    )  # the last ones see the first again
    descriptors = np.stack([np.cos(angles), np.sin(angles)], 1)
    (i, j), *more = candidates(descriptors, apart=12, near=4, most=5)
    assert i < 12 and j >= 40 and abs(angles[i] - angles[j]) < 0.1
    assert all(j >= 40 and max(abs(i - a), abs(j - b)) >= 6 for a, b in more)
    assert candidates(descriptors[:12], 12, 4, 5) == []
    for pair in ((0, 49), (3, 17), (20, 33)):
        frames = together(pair, 50, 12)
        assert len(set(frames)) == 12 and pair[0] in frames and pair[1] in frames and frames.max() < 50


def test_metres_per_unit_are_those_of_the_joined_world():
    block = Block(40)

    def metric(frames):
        found = block.reconstruct(frames)
        metres = np.median(block.points(frames[0])[1]) / np.median(found.depth[0, 0])
        return dataclasses.replace(found, metric_scale=np.array([metres], np.float32))

    (piece,) = join(metric, plan(40, 12, 4), block.shown).pieces
    np.testing.assert_allclose(piece.found.depth[0, 30], block.points(30)[1], rtol=1e-3)
    assert piece.found.metric_scale[0] == 1
