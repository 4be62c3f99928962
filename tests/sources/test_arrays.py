"""Pictures in memory, mixed sources, and a source of one's own."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fastvggt_jax.errors import ImageError, InputError
from fastvggt_jax.sources import ImagePolicy, load_images, registered
from tests.toys.source import SHEET

RNG = np.random.default_rng(0)
PIXELS = [RNG.integers(0, 256, shape, np.uint8) for shape in ((40, 60, 3), (61, 33, 3), (45, 45, 3))]


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(len(PIXELS))]
    for path, pixels in zip(paths, PIXELS, strict=True):
        Image.fromarray(pixels).save(path)
    return paths


@pytest.mark.parametrize("mode", ["crop", "pad", "square", "area"])
def test_arrays_images_iterators_and_files_give_the_same_pixels(files, mode):
    expected = load_images(files, mode=mode, size=56)
    floats = [pixels.astype(np.float32) / 255 for pixels in PIXELS]
    mixed = (x for x in (files[0], floats[1], Image.fromarray(PIXELS[2])))
    for source in (PIXELS, floats, [jnp.asarray(x) for x in PIXELS], map(Image.fromarray, PIXELS), mixed):
        images = load_images(source, mode=mode, size=56)
        assert images.pixels.dtype == np.uint8 and images.transforms == expected.transforms
        np.testing.assert_array_equal(images.pixels, expected.pixels)


def test_names_are_of_files_or_positions(files):
    images = load_images([PIXELS[0], files[1], Image.fromarray(PIXELS[2])], size=28)
    assert images.names == ("0000", "1.png", "0002")


def test_a_stack_is_as_many_photographs_and_its_pixels_are_not_touched():
    stack = RNG.integers(0, 256, (3, 28, 28, 3), np.uint8)
    images = load_images(stack, ImagePolicy("crop", 28, 14))
    np.testing.assert_array_equal(images.pixels, stack)
    assert images.names == ("0000", "0001", "0002")


def test_grey_and_alpha_are_as_in_photographs(tmp_path):
    grey, alpha = RNG.integers(0, 256, (28, 28), np.uint8), RNG.integers(0, 256, (28, 28, 4), np.uint8)
    for i, pixels in enumerate((grey, alpha)):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    np.testing.assert_array_equal(
        load_images([grey, alpha], size=28).pixels, load_images(tmp_path, size=28).pixels
    )


def test_the_policys_mode_and_size_give_way_to_arguments():
    policy = ImagePolicy("area", 42, 14)
    assert load_images(PIXELS[0], policy).pixels.shape == (1, 28, 56, 3)
    assert load_images(PIXELS[0], policy, mode="pad").pixels.shape == (1, 42, 42, 3)
    assert load_images(PIXELS[0], policy, mode="pad", size=28).pixels.shape == (1, 28, 28, 3)
    assert load_images(PIXELS[0], ImagePolicy("crop", None, 8), size=48).pixels.shape == (1, 32, 48, 3)


@pytest.mark.parametrize(
    "pixels, match",
    [
        (np.zeros((4, 4, 3), np.float32) + 200, "divide by 255"),
        (np.full((4, 4, 3), np.nan), "must be finite"),
        (np.zeros((4, 4, 3), np.int32), "not int32"),
        (np.zeros((3, 40, 40), np.uint8), "channels-first"),
        (np.zeros((2, 0, 4, 3), np.uint8), r"not \[2, 0, 4, 3\]"),
        (7, "not int"),
        (b"a.png", "not bytes"),
        ({"a.png": 1}, "not dict"),
        ({"a.png"}, "not set"),
    ],
)
def test_what_is_no_picture_is_said(pixels, match):
    with pytest.raises(InputError, match=match) as raised:
        load_images(pixels)
    assert raised.value.argument == "source"


def test_bad_photographs_among_arrays_are_skipped_or_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no")
    source = [PIXELS[0], tmp_path / "bad.png", Image.fromarray(np.ones((8, 8), np.float32))]
    with pytest.raises(ImageError, match="bad.png is damaged"):
        load_images(source)
    images = load_images(source, skip_bad=True)
    assert images.names == ("0000",)
    assert [file for file, _ in images.skipped] == [
        str(tmp_path / "bad.png"),
        "photograph 0002",
    ]


def test_a_source_of_ones_own(tmp_path):
    sheet = tmp_path / "a.sheet"
    buffer = io.BytesIO()
    np.savez(buffer, **{f"frame{i}": pixels for i, pixels in enumerate(PIXELS)})
    sheet.write_bytes(buffer.getvalue())
    with registered("sheet", SHEET):
        images = load_images([str(sheet), PIXELS[0]], size=28)
        assert images.names == ("frame0", "frame1", "frame2", "0003")
        np.testing.assert_array_equal(images.pixels, load_images([*PIXELS, PIXELS[0]], size=28).pixels)
    with pytest.raises(ImageError, match="damaged or not an image"):
        load_images(sheet)


# ---- what changes while it is read


@pytest.mark.parametrize("mode", ["crop", "area"])
@pytest.mark.parametrize("convert", [lambda x: x, lambda x: np.float32(x) / 255])
def test_a_buffer_that_is_filled_again_for_every_picture(mode, convert):
    frames = RNG.integers(0, 256, (20, 28, 28, 3), np.uint8)

    def camera():
        buffer = convert(frames[0]).copy()
        for frame in frames:
            buffer[:] = convert(frame)
            yield buffer

    images = load_images(camera(), mode=mode, size=28)
    np.testing.assert_array_equal(images.pixels, frames)


def test_an_iterator_is_read_no_further_than_pictures_are_decoded():
    alive, most = 0, 0

    class Picture(np.ndarray):
        def __del__(self):
            nonlocal alive
            alive -= self.base is None

    def camera():
        nonlocal alive, most
        for _ in range(100):
            picture = np.ndarray.__new__(Picture, (40, 60, 3), np.uint8)
            alive += 1
            most = max(most, alive)
            yield picture
            del picture

    assert len(load_images(camera(), size=28).pixels) == 100
    assert most < 10


def test_one_image_given_several_times_is_decoded_once():
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (900, 900, 3), np.uint8)).save(buffer, "png", compress_level=1)
    image, whole = Image.open(buffer), Image.open(io.BytesIO(buffer.getvalue()))
    images = load_images([image] * 8, size=56)  # not decoded yet, and eight threads may not do it
    np.testing.assert_array_equal(images.pixels, load_images(whole, size=56).pixels.repeat(8, 0))


def test_an_image_that_cannot_be_decoded_is_named_or_skipped(files):
    whole = files[1].read_bytes()
    truncated = Image.open(io.BytesIO(whole[: len(whole) // 2]))
    with Image.open(files[2]) as closed:
        pass
    for bad in (truncated, closed):
        with pytest.raises(ImageError, match="photograph 0001 is damaged or not an image"):
            load_images([PIXELS[0], bad], size=28)
        images = load_images([PIXELS[0], bad, PIXELS[1]], size=28, skip_bad=True)
        assert images.names == ("0000", "0002") and images.skipped[0][0] == "photograph 0001"


def test_a_turned_image_in_memory_is_turned_upright():
    exif, upright = Image.Exif(), Image.fromarray(PIXELS[0])
    exif[0x0112] = 6  # "turn me 90° clockwise"
    buffer = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(buffer, "png", exif=exif)
    np.testing.assert_array_equal(
        load_images(Image.open(buffer), size=56).pixels, load_images(upright, size=56).pixels
    )


# ---- arguments


@pytest.mark.parametrize("size", [28.0, "28", None])
def test_a_size_is_a_whole_number(size):
    if size is None:
        assert load_images(PIXELS[0], size=np.int64(28)).pixels.shape == (1, 14, 28, 3)
        return
    with pytest.raises(InputError, match="size must be a whole number") as raised:
        load_images(PIXELS[0], size=size)
    assert raised.value.argument == "size"


def test_an_empty_mode_is_no_mode():
    with pytest.raises(InputError, match="mode must be one of"):
        load_images(PIXELS[0], mode="")


@pytest.mark.parametrize("white", ["x", 0, 1.5])
def test_white_is_a_whole_number(white):
    with pytest.raises(InputError, match="white must be a whole number, at least 1") as raised:
        load_images(PIXELS[0], white=white)
    assert raised.value.argument == "white"
