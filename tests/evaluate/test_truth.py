"""Truth in the photographs' pixels comes to the model's pixels where the photographs' own colours come to."""

import numpy as np
import pytest

from fastvggt_jax.datasets.base import Truth
from fastvggt_jax.evaluate.truth import in_model_pixels
from fastvggt_jax.sources import load_images


def photograph(height, width):
    """u8[H, W, 3] in steps of 8 pixels, and a depth that says the same as the red."""
    y, x = np.mgrid[:height, :width] // 8
    red = 10 * (x + 1) + 5 * y
    return np.repeat(red[..., None], 3, -1).astype(np.uint8), red.astype(np.float32)


@pytest.mark.parametrize(
    "mode, height, width, padded",
    [("crop", 96, 64, False), ("pad", 64, 96, True), ("pad", 96, 64, True), ("area", 64, 96, False)],
)
def test_truth_lies_where_its_photograph_lies(mode, height, width, padded):
    pixels, depth = photograph(height, width)
    images = load_images([pixels], mode=mode, size=28)
    H, W = images.pixels.shape[1:3]
    found = in_model_pixels(Truth(depth=depth[None]), images.transforms)
    assert found.depth.shape == (1, H, W) and (not found.valid.all()) == padded
    np.testing.assert_array_equal(found.valid[0], images.transforms[0].valid_mask())
    error = np.abs(images.pixels[0, ..., 0] - found.depth[0])[found.valid[0]]
    assert np.median(error) < 4, "a step is 10 to the side"
    if padded:
        assert (images.pixels[0][~found.valid[0]] == 255).all()


def test_pixels_that_are_the_models_already_keep_every_number():
    rng = np.random.default_rng(0)
    shape = (2, 28, 42)
    truth = Truth(
        cam_from_world=rng.normal(size=(2, 3, 4)),
        K=rng.normal(size=(2, 3, 3)),
        depth=rng.normal(size=shape),
        points=rng.normal(size=(*shape, 3)),
        valid=rng.random(shape) < 0.5,
    )
    images = load_images(np.zeros((*shape, 3), np.uint8), size=42)
    found = in_model_pixels(truth, images.transforms)
    for name in ("cam_from_world", "K", "depth", "points", "valid"):
        np.testing.assert_array_equal(getattr(found, name), getattr(truth, name))


def test_photographs_of_two_sizes_and_what_is_not_known():
    (wide, depth), (high, other) = photograph(32, 64), photograph(64, 32)
    other[:32] = np.nan
    images = load_images([wide, high], mode="pad", size=28)
    found = in_model_pixels(Truth(depth=[depth, other]), images.transforms)  # type: ignore[arg-type]
    assert found.valid[0].sum() == 14 * 28 and found.valid[1].sum() == 14 * 14
    assert found.valid[1, 14:, 7:21].all() and found.points is None and found.K is None
    assert in_model_pixels(Truth(), images.transforms) == Truth()


def test_K_and_points_follow_into_the_models_pixels():
    """Every point is seen by K at the centre of a model pixel that is next to its own."""
    _, depth = photograph(96, 64)
    K = np.array([[[60.0, 0, 31], [0, 55, 47], [0, 0, 1]]])
    pose = np.eye(3, 4)[None]
    images = load_images([photograph(96, 64)[0]], mode="crop", size=28)
    found = in_model_pixels(Truth(cam_from_world=pose, K=K, depth=depth[None]), images.transforms)
    x, y, z = np.moveaxis(found.points[0].astype(np.float64), -1, 0)
    np.testing.assert_allclose(z, found.depth[0], rtol=1e-6)
    v, u = np.mgrid[:28, :28] + 0.5
    at_u, at_v, _ = np.einsum("ij,jhw->ihw", found.K[0], np.stack([x / z, y / z, np.ones_like(z)]))
    for at, pixel, scale in ((at_u, u, 28 / 64), (at_v, v, images.transforms[0].scale_y)):
        assert np.abs(at - pixel).max() <= scale / 2 + 1e-5
