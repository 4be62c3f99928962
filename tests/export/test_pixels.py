"""One pixel convention: every point of points.ply is seen by cameras.json at the centre of its pixel."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from fastvggt_jax import VGGT, Pi3, export, geometry, load_images, to_scene
from fastvggt_jax.models.prediction import Prediction

RNG = np.random.default_rng(0)
PHOTOS = [RNG.integers(0, 256, shape, np.uint8) for shape in ((90, 120, 3), (150, 70, 3), (80, 80, 3))]
VERTEX = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3), ("conf", "<f4")])


def vggt(F, H, W, points_from) -> Prediction:
    """Random cameras and depth; the point head's points are what upstream unprojects."""
    pose_enc = np.concatenate([RNG.normal(size=(1, F, 7)), RNG.uniform(0.6, 1.2, (1, F, 2))], -1)
    pose_enc = jnp.asarray(pose_enc, jnp.float32)
    depth = jnp.asarray(RNG.uniform(1, 4, (1, F, H, W, 1)), jnp.float32)
    cam_from_world, K = geometry.decode_pose(pose_enc, H, W)
    points, conf = geometry.unproject_depth(depth, K, cam_from_world), 1 + depth[..., 0]
    if points_from == "point_head":
        return Prediction(pose_enc=pose_enc, world_points=points, world_points_conf=conf, made_by=VGGT)
    return Prediction(pose_enc=pose_enc, depth=depth, depth_conf=conf, made_by=VGGT)


def pi3(F, H, W, _) -> Prediction:
    """Points that a pinhole camera sees at the centres of their pixels."""
    v, u = np.mgrid[:H, :W] + 0.5
    rays = np.stack([(u - 0.45 * W) / (0.9 * W), (v - 0.55 * H) / (0.8 * W), np.ones((H, W))], -1)
    local = jnp.asarray(rays * RNG.uniform(1, 4, (1, F, H, W, 1)), jnp.float32)
    poses = np.tile(np.eye(4), (1, F, 1, 1))
    poses[..., :3, :3] = geometry.quat_xyzw_to_rotation(RNG.normal(size=(1, F, 4)))
    poses[..., :3, 3] = RNG.normal(size=(1, F, 3))
    conf = jnp.full((1, F, H, W, 1), 2.0)
    poses = jnp.asarray(poses, jnp.float32)
    return Prediction(local_points=local, camera_poses=poses, conf=conf, made_by=Pi3)


@pytest.mark.parametrize("mode", ["crop", "pad", "square", "area"])
@pytest.mark.parametrize("predict, points_from", [(vggt, None), (vggt, "point_head"), (pi3, None)])
def test_every_point_is_seen_at_the_centre_of_its_pixel(predict, points_from, mode, tmp_path):
    images = load_images(PHOTOS, mode=mode, size=56)
    F, H, W, _ = images.pixels.shape
    scene = to_scene(predict(F, H, W, points_from), images, points_from=points_from)
    export.write(scene, tmp_path, ("cameras", "ply"))
    body = (tmp_path / "points.ply").read_bytes().split(b"end_header\n", 1)[1]
    xyz = np.frombuffer(body, VERTEX)["xyz"].astype(np.float64)
    cameras = json.loads((tmp_path / "cameras.json").read_text())["images"]
    start, checked = 0, 0
    for i, (camera, t) in enumerate(zip(cameras, images.transforms, strict=True)):
        v, u = np.nonzero(t.valid_mask())  # the order of points.ply: frame after frame, row by row
        points = xyz[start : start + len(u)]
        start += len(u)
        cam_from_world = np.linalg.inv(np.array(camera["world_from_cam"]))
        in_cam = points @ cam_from_world[:3, :3].T + cam_from_world[:3, 3]
        seen = in_cam @ np.array(camera["K"]).T
        seen = seen[:, :2] / seen[:, 2:]
        pixel = np.stack([u, v], -1) + 0.5
        atol = 0.02 * max(camera["width"], camera["height"]) / 56
        np.testing.assert_allclose(seen, t.to_original(pixel), atol=atol)
        by_model = in_cam @ scene.K[i].astype(np.float64).T
        np.testing.assert_allclose(by_model[:, :2] / by_model[:, 2:], pixel, atol=0.02)
        checked += len(u)
    assert checked == len(xyz) > F * H * W / 3
