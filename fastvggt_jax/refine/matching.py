"""Tracks that are measured: where photographs show a point, found by their pixels and not by their cameras.

The tracks of `fastvggt_jax.export.tracks` lie exactly where the model's cameras see its points, and nothing
can be learned from them. Here a patch around a pixel that has texture is followed into the other views, from
where the cameras expect it, by Lucas and Kanade's method in its inverse form (Baker and Matthews, IJCV 2004):
the patch is warped by the points around it, and shifted until it looks alike whatever its gain and offset.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from fastvggt_jax.export.tracks import Tracks, select, tracks_of_pixels
from fastvggt_jax.scene import Scene, depth_edges

RADIUS = 3  # of a patch: 7x7 pixels of the model's
CELL = 8  # pixels a side, of which the one with most texture is followed
LEAST_TEXTURE = 2.0  # grey levels squared, of 255, per pixel of a patch: of noise it is less
FARTHEST = 4.0  # model pixels from where the cameras expect it; beyond, other things look alike
ALIKE = 0.85  # normalised cross-correlation, at least
ITERATIONS = 12
STILL = 0.05  # pixels: a last step that is longer has not come to rest
STRETCH = (0.3, 3.0)  # of a patch's area between views; beyond, it is seen too differently
EDGE = 0.15  # of the depth: pixels at larger jumps are of two things

_DY, _DX = (d.ravel() for d in np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1])  # [49]


def measure_tracks(scene: Scene, max_points: int = 20_000, *, conf_percentile: float | None = None) -> Tracks:
    """Tracks of textured pixels, observed where the photographs show them; only those of two views or more.

    A point is the model's for its pixel, and observed at that pixel's centre. `residual` says how far from
    where the cameras expect it each view shows it. The same scene gives the same tracks.
    """
    grey = [to_grey(colors) for colors in scene.colors]
    taken = np.zeros(scene.valid.size, bool)
    taken[scene.point_indices(conf_percentile=conf_percentile)] = True
    whole = np.stack([_whole_patches(valid) for valid in scene.valid])
    edges = depth_edges(scene.depth, scene.valid, EDGE)
    usable = taken.reshape(scene.valid.shape) & whole & ~edges
    chosen = [corners(g, u) + i * u.size for i, (g, u) in enumerate(zip(grey, usable, strict=True))]
    tracks = tracks_of_pixels(scene, np.concatenate(chosen), max_points)
    shift, found = np.zeros_like(tracks.xy), np.zeros(len(tracks.point), bool)
    patches = _Patches(scene, grey, tracks.pixel)
    for frame in range(len(scene.names)):
        here = np.flatnonzero(tracks.frame == frame)
        own = patches.frame[tracks.point[here]] == frame
        found[here[own]] = True
        others = here[~own]
        shift[others], found[others] = patches.follow(tracks.point[others], frame, tracks.xy[others])
        u, v = (tracks.xy[others] + shift[others]).astype(np.int64).T
        found[others] &= whole[frame, v, u]
    moved = dataclasses.replace(tracks, xy=tracks.xy + shift, residual=tracks.residual + shift)
    return select(moved, found)


def _whole_patches(valid: np.ndarray) -> np.ndarray:
    """bool[H, W]: around which pixels a whole patch is valid, as far as it lies within the image."""
    outside = np.pad(~valid, RADIUS)
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(outside, 2 * RADIUS + 1, axis)
        outside = np.asarray(windows.any(-1))
    return ~outside


def to_grey(colors: np.ndarray) -> np.ndarray:
    """Of colours u8[H, W, 3]."""
    return colors.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)  # [H, W]


def _slopes(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """d/dx and d/dy, f32[H, W]; 0 on the border."""
    gx, gy = np.zeros_like(grey), np.zeros_like(grey)
    gx[:, 1:-1] = (grey[:, 2:] - grey[:, :-2]) / 2
    gy[1:-1] = (grey[2:] - grey[:-2]) / 2
    return gx, gy


def corners(grey: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """i64[K], sorted: in every cell the pixel whose patch has most texture in its poorest direction (Shi and
    Tomasi, CVPR 1994), if that is enough and the patch lies within the image.
    """
    gx, gy = _slopes(grey)
    # Less the means: of a plain slope, a shift and an offset look the same.
    mx, my = _patch_mean(gx), _patch_mean(gy)
    a, b, c = (
        _patch_mean(x * y) - mean_x * mean_y
        for x, y, mean_x, mean_y in ((gx, gx, mx, mx), (gx, gy, mx, my), (gy, gy, my, my))
    )
    texture = (a + c) / 2 - np.sqrt(((a - c) / 2) ** 2 + b * b)
    texture[~usable] = 0
    margin = RADIUS + 1
    inner = np.zeros_like(usable)
    inner[margin:-margin, margin:-margin] = True
    texture[~inner] = 0
    rows, columns = (-(-side // CELL) for side in grey.shape)
    padded = np.zeros((rows * CELL, columns * CELL), np.float32)
    padded[: grey.shape[0], : grey.shape[1]] = texture
    cells = padded.reshape(rows, CELL, columns, CELL).swapaxes(1, 2).reshape(rows, columns, -1)
    best = cells.argmax(-1)
    row, column = np.nonzero(cells.max(-1) >= LEAST_TEXTURE)
    y, x = np.divmod(best[row, column], CELL)
    return np.sort((row * CELL + y) * grey.shape[1] + column * CELL + x)


def _patch_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the patch around each pixel, by sums along both axes; outside the image is 0."""
    side = 2 * RADIUS + 1
    for axis in (0, 1):
        pad = [(0, 0), (0, 0)]
        pad[axis] = (RADIUS + 1, RADIUS)
        sums = np.cumsum(np.pad(values, pad), axis, dtype=np.float64)
        values = np.take(sums, range(side, sums.shape[axis]), axis) - np.take(
            sums, range(sums.shape[axis] - side), axis
        )
    return (values / side**2).astype(np.float32)


class _Patches:
    """The patches around M pixels (indices among all F·H·W), to be followed."""

    def __init__(self, scene: Scene, grey: list[np.ndarray], pixel: np.ndarray) -> None:
        _, height, width = scene.valid.shape
        self.scene, self.grey = scene, grey
        self.frame, rest = np.divmod(pixel, height * width)
        self.v, self.u = np.divmod(rest, width)
        self.values, self.gx, self.gy = np.zeros((3, len(pixel), len(_DX)), np.float32)
        for frame in np.unique(self.frame):
            of = self.frame == frame
            at = self.v[of, None] + _DY, self.u[of, None] + _DX
            for out, image in zip(
                (self.values, self.gx, self.gy), (grey[frame], *_slopes(grey[frame])), strict=True
            ):
                out[of] = image[at]
        self.values -= self.values.mean(-1, keepdims=True)
        self.strength = np.linalg.norm(self.values, axis=-1)
        # What gain and offset explain of the slopes tells nothing of a shift.
        unit = self.values / np.maximum(self.strength, 1e-6)[:, None]
        for slope in (self.gx, self.gy):
            slope -= slope.mean(-1, keepdims=True)
            slope -= (slope * unit).sum(-1, keepdims=True) * unit
        pairs = (self.gx, self.gx), (self.gx, self.gy), (self.gy, self.gy)
        self.normal = np.stack([(a * b).sum(-1) for a, b in pairs], -1)  # [M, 3]

    def follow(self, patch: np.ndarray, frame: int, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(shift f64[n, 2] from the expected places xy f64[n, 2] of these patches in a frame, whether each
        was found there)."""
        warp = self._warp(patch, frame)  # [n, 2, 2]
        area = np.linalg.det(warp)
        fits = (area > STRETCH[0]) & (area < STRETCH[1]) & (np.abs(warp).max((1, 2)) < STRETCH[1])
        patch, xy, warp = patch[fits], xy[fits], warp[fits]
        a, b, c = self.normal[patch].T
        steps, step = np.zeros((len(patch), 2)), np.zeros((len(patch), 2))  # in the patch's own pixels
        for _ in range(ITERATIONS):
            values, strength = self._sample(frame, xy, warp, steps)
            error = values * (self.strength[patch] / strength)[:, None] - self.values[patch]
            x, y = (self.gx[patch] * error).sum(-1), (self.gy[patch] * error).sum(-1)
            step = -np.stack([c * x - b * y, a * y - b * x], -1) / (a * c - b * b)[:, None]
            step *= np.minimum(1, 1 / np.maximum(np.linalg.norm(step, axis=-1, keepdims=True), 1e-9))
            steps += step
        values, strength = self._sample(frame, xy, warp, steps)
        alike = (values * self.values[patch]).sum(-1) / (strength * self.strength[patch])
        moved = np.einsum("nij,nj->ni", warp, steps)
        height, width = self.grey[frame].shape
        good = (alike >= ALIKE) & (np.linalg.norm(step, axis=-1) < STILL)
        good &= np.linalg.norm(moved, axis=-1) <= FARTHEST
        good &= ((xy + moved >= RADIUS) & (xy + moved <= (width - RADIUS, height - RADIUS))).all(-1)
        shift, found = np.zeros((len(fits), 2)), np.zeros(len(fits), bool)
        shift[fits], found[fits] = np.where(good[:, None], moved, 0), good
        return shift, found

    def _warp(self, patch: np.ndarray, frame: int) -> np.ndarray:
        """f64[n, 2, 2]: how far a step of one pixel in x, and one in y, leads in the frame."""
        pixel_from_world = self.scene.K[frame].astype(np.float64) @ self.scene.cam_from_world[frame]
        columns = []
        for dx, dy in ((1, 0), (0, 1)):
            ends = []
            for sign in (1, -1):
                at = self.frame[patch], self.v[patch] + sign * dy, self.u[patch] + sign * dx
                seen = self.scene.points[at] @ pixel_from_world[:, :3].T + pixel_from_world[:, 3]
                with np.errstate(divide="ignore", invalid="ignore"):
                    ends.append(seen[:, :2] / seen[:, 2:])
            columns.append((ends[0] - ends[1]) / 2)
        return np.stack(columns, -1)

    def _sample(
        self, frame: int, xy: np.ndarray, warp: np.ndarray, steps: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The frame's grey less its mean f64[n, 49], and its norm, around places that are `steps` away."""
        offsets = np.stack([_DX, _DY], -1) + steps[:, None]  # [n, 49, 2]
        at = xy[:, None] + offsets @ warp.swapaxes(1, 2)
        values = _bilinear(self.grey[frame], at)
        values = values - values.mean(-1, keepdims=True)
        return values, np.linalg.norm(values, axis=-1) + 1e-6


def _bilinear(image: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Values f32[...] at pixels f64[..., 2], the first one's centre at (0.5, 0.5); the border's beyond."""
    height, width = image.shape
    x, y = np.clip(xy[..., 0] - 0.5, 0, width - 1.001), np.clip(xy[..., 1] - 0.5, 0, height - 1.001)
    left, top = x.astype(np.int64), y.astype(np.int64)
    wx, wy = (x - left).astype(np.float32), (y - top).astype(np.float32)
    flat, at = image.reshape(-1), top * width + left
    upper = flat[at] * (1 - wx) + flat[at + 1] * wx
    lower = flat[at + width] * (1 - wx) + flat[at + width + 1] * wx
    return upper * (1 - wy) + lower * wy
