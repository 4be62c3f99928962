"""PNG as Pillow reads it."""

import io

import numpy as np
import pytest
from PIL import Image

from fastvggt_jax.io.png import png


@pytest.mark.parametrize("shape", [(1, 1, 3), (17, 5, 3), (392, 518, 3)])
def test_a_picture_comes_back(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    image = Image.open(io.BytesIO(png(pixels, {"near": "0.5", "far": "1e+03"})))
    image.load()
    assert image.mode == "RGB" and image.text == {"near": "0.5", "far": "1e+03"}
    np.testing.assert_array_equal(np.asarray(image), pixels)
    Image.open(io.BytesIO(png(pixels, {}))).verify()  # the sums of its parts
