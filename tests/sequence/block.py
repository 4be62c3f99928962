"""A drive around a block, and what a model might say of parts of it: the truth in a world of its own, bent
and noisy.
"""

import numpy as np

from fastvggt_jax.geometry.alignment import Similarity, align
from fastvggt_jax.models.prediction import Reconstruction

BLOCK, STREET, FAR = 10.0, 13.0, 40.0  # half sides of the block, of the way around it, of what stands beyond
SIZE, FOCAL = (12, 16), 10.0  # pixels


def rotation(angles):
    """About y, x and z, in this order of products."""
    (cy, cx, cz), (sy, sx, sz) = np.cos(angles), np.sin(angles)
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    return about_y @ about_x @ np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])


class Block:
    """Once around, so many frames and some more, which see again what the first ones saw."""

    def __init__(self, frames, again=0, seed=0, size=SIZE):
        self.size = size
        self.rng = np.random.default_rng(seed)
        self.along = np.arange(frames + again) / frames * 4  # sides
        side, on = np.divmod(self.along, 1.0)
        way = -side * np.pi / 2
        start = np.array([-STREET, 0, STREET])
        self.world_from_cam = np.zeros((len(on), 3, 4))
        for i, (turn, x) in enumerate(zip(way, on, strict=True)):
            # Ahead, half turned to the block, and smoothly around corners.
            corner = np.clip((x - 0.9) / 0.2, 0, 1) - np.clip((0.1 - x) / 0.2, 0, 1)
            R = rotation([-turn - np.pi / 4 + corner * np.pi / 4, 0.05, 0])
            self.world_from_cam[i, :, :3] = R
            self.world_from_cam[i, :, 3] = rotation([-turn, 0, 0]) @ (
                start + np.array([2 * STREET * x, 0, 0])
            )
        self.shown = np.ones((len(on), *size), bool)

    @property
    def centres(self):
        return self.world_from_cam[..., 3]

    @property
    def descriptors(self):
        """Alike where a place is near and seen from the same side."""
        features = np.random.default_rng(1).normal(size=(4, 256))
        place = np.concatenate([self.centres / 3, np.cos(self.along * np.pi / 2)[:, None]], 1) @ features
        found = np.concatenate([np.cos(place), np.sin(place)], 1)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def points(self, i):
        """Of each pixel what it sees, in the world, and its depth."""
        height, width = self.size
        v, u = np.mgrid[:height, :width] + 0.5
        rays = np.stack([(u - width / 2) / FOCAL, (v - height / 2) / FOCAL, np.ones_like(u)], -1)
        R, centre = self.world_from_cam[i, :, :3], self.world_from_cam[i, :, 3]
        direction = rays @ R.T
        slab = lambda half: np.sort(
            (np.array([[-half, -3, -half], [half, 3, half]])[:, None, None] - centre) / direction, 0
        )
        enter, leave = slab(BLOCK)
        hit = (enter.max(-1) < leave.min(-1)) & (enter.max(-1) > 0)
        depth = np.where(hit, enter.max(-1), slab(FAR)[1].min(-1))
        return centre + depth[..., None] * direction, depth

    def reconstruct(self, frames, bend=0.0, noise=0.0, outliers=0.0):
        """[1, f, ...] in a world and unit of its own, that turns and grows by `bend` from side to side."""
        f = len(frames)
        u = (self.along[frames] - self.along[frames[0]] + 2) % 4 - 2
        u = u - u.mean()
        yaw, growth = bend * (1 + 0.3 * self.rng.normal(size=2))
        own = Similarity(
            np.exp(self.rng.normal() * 0.5), rotation(self.rng.normal(size=3)), self.rng.normal(size=3) * 9
        )
        cameras, points, depths = (
            np.zeros((f, 3, 4)),
            np.zeros((f, *self.size, 3)),
            np.zeros((f, *self.size)),
        )
        middle = self.centres[frames].mean(0)
        for at, i in enumerate(frames):
            turned = rotation([yaw * u[at], 0, 0])
            grown = np.exp(growth * u[at])
            bent = own.after(Similarity(grown, turned, middle - grown * turned @ middle))
            seen, depth = self.points(i)
            off = 1 + noise * self.rng.normal(size=depth.shape)
            off = np.where(
                self.rng.random(depth.shape) < outliers, self.rng.uniform(0.2, 3, depth.shape), off
            )
            centre = self.centres[i]
            seen, depth = centre + off[..., None] * (seen - centre), off * depth
            R = self.world_from_cam[i, :, :3].T
            cameras[at] = bent.of_cameras(np.concatenate([R, (-R @ centre)[:, None]], 1))
            points[at], depths[at] = bent(seen), bent.scale * depth
        height, width = self.size
        K = np.array([[FOCAL, 0, width / 2], [0, FOCAL, height / 2], [0, 0, 1]])
        one = lambda x: np.asarray(x, np.float32)[None]
        conf = one(np.full(depths.shape, 2.0))
        return Reconstruction(one(cameras), one(np.tile(K, (f, 1, 1))), one(depths), conf, one(points), conf)

    def error(self, found, frames=None):
        """Root mean square of the cameras' centres, after the similarity that brings them nearest."""
        cameras = np.asarray(found.cam_from_world[0], np.float64)
        centres = -np.einsum("nji,nj->ni", cameras[..., :3], cameras[..., 3])
        truth = self.centres if frames is None else self.centres[frames]
        return np.sqrt(np.square(align(centres, truth)(centres) - truth).sum(-1).mean())
