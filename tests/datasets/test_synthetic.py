"""Rendered scenes agree with themselves: depth, points, cameras and colours tell the same story."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fastvggt_jax import geometry
from fastvggt_jax.datasets.synthetic import path, render, sample, shapes, tracks
from fastvggt_jax.datasets.synthetic.sample import _develop
from fastvggt_jax.datasets.synthetic.texture import PATTERNS, albedo, hash_unit, noise

SIZE = dict(frames=3, height=48, width=64, supersampling=1)


@pytest.fixture(scope="module")
def scenes():
    """A room and an outdoor plot."""
    found = {}
    for index in range(20):
        scene = sample("train", index, **SIZE)
        found.setdefault(bool(scene.world.outdoors), scene)
        if len(found) == 2:
            return found
    raise AssertionError("twenty scenes are all of one kind")


@pytest.mark.parametrize("outdoors", [False, True])
def test_depth_unprojects_to_the_points(scenes, outdoors):
    scene = scenes[outdoors]
    K = jnp.broadcast_to(scene.K, (3, 3, 3))
    points = np.asarray(geometry.unproject_depth(scene.depth, K, scene.cam_from_world))
    valid = np.asarray(scene.valid)
    assert valid.mean() > 0.3
    error = np.abs(points - scene.world_points)[valid].max(-1)
    assert (error / np.asarray(scene.depth)[valid][:, 0]).max() < 1e-4
    np.testing.assert_array_equal(np.asarray(scene.depth)[~valid], 0)
    np.testing.assert_allclose(geometry.invert_se3(scene.cam_from_world), scene.world_from_cam, atol=1e-4)


@pytest.mark.parametrize("outdoors", [False, True])
def test_a_view_warped_into_another_matches_its_colours(scenes, outdoors):
    """Points of the first view, looked up where the second one sees them."""
    scene = scenes[outdoors]
    v, u = np.mgrid[:48, :64]
    where, seen = (
        np.asarray(x) for x in tracks(scene, jnp.asarray(np.stack([u, v], -1).reshape(-1, 2), jnp.float32))
    )
    first = np.asarray(scene.images[0]).reshape(-1, 3)
    found = 0
    for view in (0, 1):
        at = np.rint(where[view]).astype(int)[seen[view]]
        error = np.abs(np.asarray(scene.images[view])[at[:, 1], at[:, 0]] - first[seen[view]]).mean(-1)
        chance = np.abs(np.roll(first, 500, 0) - first).mean()
        assert np.median(error) < (0.01 if view == 0 else 0.25 * chance), view  # a pixel off is more
        found += seen[view].mean()
    assert found > 0.6


def test_a_track_is_where_the_point_is_and_hidden_where_something_is_nearer(scenes):
    scene = scenes[False]
    queries = jnp.array([[10.0, 10], [30, 24], [50, 40]])
    where, seen = tracks(scene, queries)
    np.testing.assert_allclose(where[0], queries, atol=1e-2)
    assert seen[0].all()
    depth = np.asarray(scene.depth[..., 0])
    for view in (1, 2):
        for q, (x, y) in enumerate(np.asarray(where[view])):
            point = np.asarray(scene.world_points)[0, int(queries[q, 1]), int(queries[q, 0])]
            z = np.asarray(scene.cam_from_world)[view] @ [*point, 1]
            inside = 0 <= x <= 63 and 0 <= y <= 47 and z[2] > 0
            if not inside:
                assert not seen[view, q]
            elif seen[view, q]:  # the nearest of the pixels around is not far before the point
                around = depth[view, int(y) : int(y) + 2, int(x) : int(x) + 2]
                assert around.max() > 0.9 * z[2]


def test_the_same_number_is_the_same_scene_and_splits_differ():
    again, *others = (sample(split, 3, **SIZE) for split in ("train", "validation", "test"))
    jax.tree.map(np.testing.assert_array_equal, sample("train", 3, **SIZE), again)
    for one, other in ((again, others[0]), (again, others[1]), others):
        assert np.abs(np.asarray(one.images) - other.images).mean() > 0.02
    with pytest.raises(ValueError, match="split must be one of train, validation, test, not 'dev'"):
        sample("dev", 0, **SIZE)


def test_views_overlap_those_before_them_and_nothing_is_too_near():
    score = jax.jit(
        lambda scene: path._score(scene.world, scene.K, scene.world_from_cam, *scene.depth.shape[1:3])
    )
    scores = [score(sample("train", index, **SIZE)) for index in range(16)]
    assert min(scores) > 0.3  # an overlap of so much, free sight, and not only sky


@pytest.mark.slow
def test_what_stands_before_the_light_casts_a_shadow(scenes):
    plot = scenes[True].world
    away = plot.centre.at[:, 2].set(-50.0)
    plot = plot.replace(hills=plot.hills.at[:, 0].set(0), light=jnp.array([0.0, 0, 1000]), centre=away)
    roof = plot.replace(
        centre=away.at[0].set(jnp.array([0, 0, 6.0])), size=plot.size.at[0].set(jnp.array([1, 1, 0.1]))
    )
    target = jnp.array([[0.0, 0, 0], [4, 0, 0]])  # under the roof and beside it
    eye = jnp.array([6.0, 0, 3])
    direction = (target - eye) / jnp.linalg.norm(target - eye, axis=-1, keepdims=True)
    shade = jax.jit(lambda world: render.shade(world, jnp.broadcast_to(eye, (2, 3)), direction)[0])
    lit, shaded = np.asarray(shade(plot)), np.asarray(shade(roof))
    assert (shaded[0] < 0.7 * lit[0]).all()
    np.testing.assert_array_equal(shaded[1], lit[1])


def test_photographs_differ_in_exposure_white_balance_and_noise_slightly():
    grey = jnp.full((16, 16, 16, 3), 0.2)
    photos = np.asarray(
        jax.vmap(lambda key: _develop(key, grey))(jax.random.split(jax.random.key(1), 16)), np.float64
    )
    np.testing.assert_allclose(np.round(photos * 255) / 255, photos, atol=1e-6)
    colour = photos.mean((2, 3))  # [scene, photo, channel]
    brightness = colour.mean(-1)
    tint = colour / brightness[..., None]
    noise_of_scenes = (photos - colour[:, :, None, None]).std((1, 2, 3, 4))
    spread = (brightness.mean(1).std(), brightness.std(1).mean(), tint.std(1).mean(), noise_of_scenes.mean())
    np.testing.assert_allclose(
        spread, (0.065, 0.017, 0.015, 0.01), rtol=0.35
    )  # of 25 %, 6 %, 4 % of the light, and noise


@pytest.mark.slow
def test_every_pattern_is_another_one():
    u, v = jnp.meshgrid(jnp.linspace(0, 4, 64), jnp.linspace(0, 4, 64))
    wall = jnp.stack([u, jnp.zeros_like(u), v], -1)
    colors = jnp.broadcast_to(jnp.array([[0.1], [0.4], [0.9]]), (64, 64, 3, 3))
    facing = jnp.broadcast_to(jnp.array([0.0, 1, 0]), wall.shape)
    draw = jax.jit(lambda pattern: albedo(wall, facing, pattern, jnp.ones(()), jnp.int32(3), colors))
    drawn = [np.asarray(draw(pattern)) for pattern in range(len(PATTERNS))]
    for a, b in itertools.combinations(drawn, 2):
        assert np.abs(a - b).mean() > 0.03


@pytest.mark.parametrize("kind", range(4), ids=[f.__name__ for f in shapes.KINDS])
def test_rays_meet_shapes_where_their_surface_is(kind):
    """Against marching in small steps through the solid."""
    inside = (
        lambda p: np.abs(p).max(-1) <= 1,
        lambda p: (p**2).sum(-1) <= 1,
        lambda p: (np.hypot(p[..., 0], p[..., 1]) <= 1) & (np.abs(p[..., 2]) <= 1),
        lambda p: (np.hypot(p[..., 0], p[..., 1]) <= (1 - p[..., 2]) / 2) & (np.abs(p[..., 2]) <= 1),
    )[kind]
    rng = np.random.default_rng(0)
    origin = rng.normal(size=(300, 3)).astype(np.float32) * 2
    direction = rng.normal(size=(300, 3)) * 0.5 - origin
    direction = (direction / np.linalg.norm(direction, axis=-1, keepdims=True)).astype(np.float32)
    steps = np.linspace(0, 12, 6001)
    within = inside(origin[:, None] + steps[:, None] * direction[:, None])
    changes = within[:, 1:] != within[:, :-1]
    expected = np.where(changes.any(1), steps[1:][changes.argmax(1)], np.inf)
    found = np.asarray(shapes.KINDS[kind](jnp.moveaxis(origin, -1, 0), jnp.moveaxis(direction, -1, 0)))
    with np.errstate(invalid="ignore"):
        agree = (np.abs(found - expected) < 5e-3) | (np.isinf(found) & np.isinf(expected))
    assert (
        agree.mean() > 0.98 and np.isfinite(found).sum() > 100
    )  # the march misses what is thinner than a step
    hit = (
        origin[agree & np.isfinite(found)]
        + found[agree & np.isfinite(found), None] * direction[agree & np.isfinite(found)]
    )
    normal = np.asarray(shapes.normal(jnp.full(len(hit), kind), hit))
    assert (~inside(hit + 1e-2 * normal)).mean() > 0.98 and inside(hit - 1e-2 * normal).mean() > 0.95


def test_noise_is_smooth_and_hashes_are_even():
    i = jnp.arange(20_000)
    values = np.asarray(hash_unit(i, 7 * i, jnp.int32(3)))
    assert abs(values.mean() - 0.5) < 0.01 and abs(np.histogram(values, 10)[0] / 2000 - 1).max() < 0.1
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 0.03
    p = jax.random.uniform(jax.random.key(0), (1000, 3), maxval=9.0)
    assert np.abs(noise(p, jnp.int32(1)) - noise(p + 1e-3, jnp.int32(1))).max() < 0.01


def test_a_contact_sheet_is_written(tmp_path, capsys):
    from fastvggt_jax.datasets.synthetic.__main__ import main

    assert (
        main(
            [
                str(tmp_path / "sheet.png"),
                "--scenes",
                "2",
                "--frames",
                "3",
                "--size",
                "48",
                "64",
                "--supersampling",
                "1",
            ]
        )
        == 0
    )
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (4 * 64, 2 * 48)
    assert main([str(tmp_path / "sheet.txt")]) == 2
    assert "sheet.txt must end in .jpg or .png" in capsys.readouterr().err
