"""Masks beside photographs: found by name, of the photographs' size, and followed everywhere."""

import numpy as np
import pytest
from PIL import Image

from fastvggt_jax.errors import ImageError, InputError, MissingError
from fastvggt_jax.sources import ImagePolicy, load_images

POLICY = ImagePolicy("crop", 28, 14)


@pytest.fixture
def photos(tmp_path):
    """Two photographs of 56x28 pixels, the second turned by EXIF, and masks of their left halves."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "masks").mkdir()
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 200, (28, 56, 3), np.uint8))
    image.save(tmp_path / "photos" / "a.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    image.rotate(90, expand=True).save(tmp_path / "photos" / "b.jpg", exif=turned)
    mask = np.zeros((28, 56), np.uint8)
    mask[:, 28:] = 255
    Image.fromarray(mask).save(tmp_path / "masks" / "a.jpg.png")
    Image.fromarray(np.repeat(mask[..., None] // 255, 3, -1)).save(tmp_path / "masks" / "b.png")
    return tmp_path


def load(photos, **options):
    return load_images(photos / "photos", POLICY, masks=photos / "masks", **options)


def test_what_is_black_is_not_shown_and_only_that(photos):
    images = load(photos)
    expected = np.zeros((2, 14, 28), bool)
    expected[:, :, 14:] = True
    np.testing.assert_array_equal(images.masks, expected)
    np.testing.assert_array_equal(images.shown(), expected)
    plain = load_images(photos / "photos", POLICY)
    np.testing.assert_array_equal(images.pixels, plain.pixels), "the model sees what it would"
    painted = load(photos, paint_masks=True).pixels
    assert (painted[:, :, :13] == 255).all()  # a pixel at the edge mixes both
    np.testing.assert_array_equal(painted[:, :, 16:], plain.pixels[:, :, 16:])


def test_masks_and_transparency_are_one(photos):
    rgba = np.full((28, 56, 4), 255, np.uint8)
    rgba[:14, :, 3] = 0
    Image.fromarray(rgba).save(photos / "photos" / "a.png")
    (photos / "masks" / "a.jpg.png").rename(photos / "masks" / "a.png")
    images = load_images([photos / "photos" / "a.png"], POLICY, masks=photos / "masks")
    expected = np.zeros((14, 28), bool)
    expected[7:, 14:] = True
    np.testing.assert_array_equal(images.shown()[0], expected)


def test_photographs_of_one_name_have_masks_in_folders(photos):
    (photos / "photos" / "a.jpg").rename(photos / "a.jpg")
    for folder, level in (("left", 0), ("right", 255)):
        (photos / folder).mkdir()
        (photos / "masks" / folder).mkdir()
        image = Image.open(photos / "a.jpg")
        image.putpixel((0, 0), (level,) * 3)
        image.save(photos / folder / "a.jpg")
        Image.fromarray(np.full((28, 56), level, np.uint8)).save(photos / "masks" / folder / "a.png")
    images = load_images([photos / "left", photos / "right"], POLICY, masks=photos / "masks")
    assert not images.shown()[0].any() and images.shown()[1].all()


def test_what_is_wrong_with_masks_is_a_sentence(photos):
    masks = photos / "masks"
    with pytest.raises(MissingError, match="gone: no such folder"):
        load_images(photos / "photos", POLICY, masks=photos / "gone")
    with pytest.raises(InputError, match="masks are found by the names of files"):
        load_images([np.zeros((28, 28, 3), np.uint8)], POLICY, masks=masks)
    with pytest.raises(InputError, match="paint_masks needs masks"):
        load_images(photos / "photos", POLICY, paint_masks=True)
    Image.new("L", (28, 56)).save(masks / "b.png")  # as the file lies, not as it is seen
    with pytest.raises(InputError, match="b.png has 28x56 pixels, but .*b.jpg has 56x28: .* upright"):
        load(photos)
    (masks / "b.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match="the mask .*b.png is damaged"):
        load(photos)
    (masks / "b.png").unlink()
    with pytest.raises(InputError, match="holds none of b.jpg: it would be b.jpg.png or b.png"):
        load(photos)


def test_a_mask_is_of_one_photograph_and_no_photograph_its_own(photos):
    for camera in ("cam1", "cam2"):
        (photos / camera / "left").mkdir(parents=True)
        (photos / "masks" / camera / "left").mkdir(parents=True)
        image = Image.open(photos / "photos" / "a.jpg")
        image.putpixel((0, 0), (int(camera[-1]),) * 3)
        image.save(photos / camera / "left" / "0.png")
    names = [photos / camera / "left" / "0.png" for camera in ("cam1", "cam2")]
    (photos / "masks" / "left").mkdir()
    mask = np.full((28, 56), 255, np.uint8)
    Image.fromarray(mask).save(photos / "masks" / "left" / "0.png")
    with pytest.raises(InputError, match=r"may be of .*cam[12].* or of .*cam[12].*: put masks into folders"):
        load_images(names, POLICY, masks=photos / "masks")
    mask[:14] = 0
    for camera in ("cam1", "cam2"):  # as COLMAP has them
        Image.fromarray(mask).save(photos / "masks" / camera / "left" / "0.png.png")
    assert load_images(names, POLICY, masks=photos / "masks").shown().mean() == 0.5
    with pytest.raises(InputError, match="holds none of 0.png"):
        load_images(names[:1], POLICY, masks=names[0].parent)
