"""Loading photographs: upstream's pixels, the way back to the original pixels, and what is said about bad
files.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from fastvggt_jax.errors import ImageError
from fastvggt_jax.sources import ImagePolicy, ImageTransform, load_images, photographs, sizing

GOLDEN_DIR = Path(__file__).parents[1] / "golden"
PHOTOS = GOLDEN_DIR / "images"
with safe_open(GOLDEN_DIR / "preprocess.safetensors", "np") as f:
    CASE = json.loads(f.metadata()["case"])
    GOLDEN = {key: f.get_tensor(key) for key in f.keys()}


def photo(path: Path, width=60, height=40, mode="RGB", **save) -> Path:
    gradient = np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(gradient).convert(mode).save(path, **save)
    return path


# ---- upstream's pixels


@pytest.mark.parametrize("key", [k for k in CASE["full"] if k.startswith("vggt.")])
def test_pixels_equal_upstream(key):
    mode, group = key.split(".")[1:]
    size = 518
    if mode.startswith("square"):
        mode, size, names = "square", int(mode[len("square") :]), CASE["groups"]["all_mixed"]
    else:
        names = CASE["groups"][group]
    images = load_images([PHOTOS / f"{name}.png" for name in names], mode=mode, size=size)
    assert images.pixels.dtype == np.uint8
    nchw = np.ascontiguousarray(images.pixels.transpose(0, 3, 1, 2))
    assert list(nchw.shape) == CASE["full"][key]["shape"]
    np.testing.assert_array_equal(nchw[..., 3::7, 2::7], GOLDEN[key])
    assert hashlib.sha256(nchw.tobytes()).hexdigest() == CASE["full"][key]["sha256_of_uint8_NCHW"]


@pytest.mark.parametrize("key", [k for k in CASE["full"] if k.startswith("pi3.")])
def test_pixels_equal_those_of_pi3(key):
    limit = int(key.split(".")[1].removeprefix("limit"))
    size = None if limit == sizing.AREA else int(limit**0.5)
    images = load_images([PHOTOS / name for name in CASE["pi3_sorted"]], mode="area", size=size)
    nchw = np.ascontiguousarray(images.pixels.transpose(0, 3, 1, 2))
    assert list(nchw.shape) == CASE["full"][key]["shape"]
    np.testing.assert_array_equal(nchw[..., 3::7, 2::7], GOLDEN[key])
    assert hashlib.sha256(nchw.tobytes()).hexdigest() == CASE["full"][key]["sha256_of_uint8_NCHW"]
    for t in images.transforms:  # every photograph fills the image, each by its own scales
        np.testing.assert_allclose(
            t.to_model([[t.original_width, t.original_height]]),
            [[images.pixels.shape[2], images.pixels.shape[1]]],
        )


def test_the_size_for_an_area_equals_upstream():
    for width, height, limit, *target in GOLDEN["pi3.resize_rule"].astype(int).tolist():
        assert sizing.area_size(width, height, limit, 14) == tuple(target)
    assert sizing.area_size(1, 10_000, 200, 14) == (14, 14)
    assert sizing.area_size(396, 407, 255_000, 14) == (
        490,
        518,
    )  # 36:37 exactly, where upstream's rounding errors decide


def test_an_area_is_sized_by_the_first_photograph_that_can_be_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    photo(tmp_path / "b.png", 100, 50)
    photo(tmp_path / "c.png", 50, 100)
    images = load_images(tmp_path, mode="area", size=140, skip_bad=True)
    assert images.pixels.shape == (2, 98, 196, 3)
    with pytest.raises(ValueError, match="size must be at least 14, not 5"):
        load_images(tmp_path, mode="area", size=5)


def test_square_corners_equal_upstream():
    images = load_images(
        [PHOTOS / f"{name}.png" for name in CASE["groups"]["all_mixed"]], mode="square", size=266
    )
    for t, (x1, y1, x2, y2, w, h) in zip(images.transforms, GOLDEN["vggt.square266.coords"], strict=True):
        np.testing.assert_allclose(t.to_model([[0, 0], [w, h]]), [[x1, y1], [x2, y2]], rtol=1e-6, atol=1e-5)


# ---- where they come from


def test_a_folder_is_read_in_natural_order(tmp_path):
    for name in ("img10.png", "img2.PNG", "img1.jpg", ".img0.png", "notes.txt"):
        photo(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).write_text("x")
    (tmp_path / "folder.png").mkdir()
    assert load_images(tmp_path, size=28).names == ("img1.jpg", "img2.PNG", "img10.png")


def test_a_pattern_is_sorted_and_a_list_is_not(tmp_path):
    a, b = photo(tmp_path / "a10.png"), photo(tmp_path / "a9.png")
    assert load_images(str(tmp_path / "*.png"), size=28).names == ("a9.png", "a10.png")
    assert load_images([a, b], size=28).names == ("a10.png", "a9.png")
    assert load_images(a, size=28).names == ("a10.png",)


def test_equal_names_in_two_folders_keep_their_folders(tmp_path):
    paths = [photo(tmp_path / "left" / "0.png"), photo(tmp_path / "right" / "0.png")]
    assert load_images(paths, size=28).names == ("left/0.png", "right/0.png")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tiff"])
def test_formats(tmp_path, suffix):
    images = load_images(photo(tmp_path / f"a{suffix}"), size=56)
    assert images.pixels.shape == (1, 42, 56, 3)
    reference = load_images(photo(tmp_path / "b.png"), size=56).pixels
    assert np.abs(images.pixels.astype(float) - reference).mean() < 0.05 * 255


def test_heic_when_it_can_be_read(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    assert load_images(photo(tmp_path / "a.heic"), size=56).pixels.shape == (1, 42, 56, 3)


def test_heic_without_its_library_names_the_extra(tmp_path, monkeypatch):
    for name in ("a.heic", "a.jpg", "a.hif"):  # by what it holds
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
        monkeypatch.setattr(photographs, "_heif_is_there", lambda: False)
        with pytest.raises(ImageError, match=r"a\..* is HEIC.*fastvggt_jax\[heic\]"):
            load_images(tmp_path / name)


# ---- kinds of pixels


def test_exif_orientation_is_applied(tmp_path):
    upright = Image.fromarray(np.arange(40 * 60 * 3, dtype=np.uint32).reshape(40, 60, 3).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me 90° clockwise"
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    turned, reference = (load_images(tmp_path / f"{n}.png", size=56) for n in ("turned", "upright"))
    np.testing.assert_array_equal(turned.pixels, reference.pixels)
    assert turned.transforms == reference.transforms
    assert (turned.transforms[0].original_width, turned.transforms[0].original_height) == (60, 40)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(tmp_path, mode):
    if mode == "P":
        image = Image.new("P", (28, 28), 0)
        image.putpalette([10, 20, 30] * 256)
        image.save(tmp_path / "a.png", transparency=0)
    else:
        Image.new(mode, (28, 28), (10, 20, 30, 0) if mode == "RGBA" else (10, 0)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_images(tmp_path, size=28).pixels, np.full((1, 28, 28, 3), 255))


def test_grey_of_8_and_16_bits(tmp_path):
    grey = np.full((28, 28), 100, np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "b.png")
    pixels = load_images(tmp_path, size=28).pixels
    np.testing.assert_array_equal(pixels, np.full((2, 28, 28, 3), 100))


def test_floating_point_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((28, 28), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=r"a\.tif: floating-point"):
        load_images(tmp_path)


def test_a_thin_strip_keeps_one_row_of_patches(tmp_path):
    assert load_images(photo(tmp_path / "a.png", 400, 2), size=56).pixels.shape == (1, 14, 56, 3)


# ---- the way back


@pytest.mark.parametrize("mode", ["crop", "pad", "square"])
@pytest.mark.parametrize("size", [(120, 90), (90, 200)])
def test_the_transform_finds_the_same_spot(tmp_path, mode, size):
    width, height = size
    spots = np.array([[30, 66], [70, 80], [20, 75]])  # inside what the crop keeps
    pixels = np.zeros((height, width, 3), np.uint8)
    for channel, (x, y) in enumerate(spots):
        pixels[y - 4 : y + 4, x - 4 : x + 4, channel] = 255  # the square's centre is the corner (x, y)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    photo(tmp_path / "b.png", 50, 60)  # another shape, so that padding to a common size takes part too
    images = load_images([tmp_path / "a.png", tmp_path / "b.png"], mode=mode, size=224)
    t = images.transforms[0]
    seen = images.pixels[0] * t.valid_mask()[..., None]
    ys, xs = np.mgrid[: seen.shape[0], : seen.shape[1]] + 0.5
    centres = [[(seen[..., c] * xs).sum(), (seen[..., c] * ys).sum()] / seen[..., c].sum() for c in range(3)]
    np.testing.assert_allclose(t.to_model(spots), centres, atol=0.1)
    np.testing.assert_allclose(t.to_original(t.to_model(spots)), spots, atol=1e-9)


def test_valid_is_the_photograph_without_its_padding():
    for mode, size in (("crop", 518), ("pad", 518), ("square", 266)):
        images = load_images(PHOTOS, mode=mode, size=size)
        for pixels, t, name in zip(images.pixels, images.transforms, images.names, strict=True):
            outside = pixels[~t.valid_mask()]
            assert (t.model_height, t.model_width) == pixels.shape[:2]
            if mode != "square":  # there the outermost pixel mixes the photograph with black
                assert (outside == 255).all(), name
            aspect = t.original_width / t.original_height
            left, top, right, bottom = t.valid
            if mode != "crop" or aspect > 1:  # nothing cut off
                assert abs((right - left) / (bottom - top) - aspect) < 0.13 * aspect


def test_valid_leaves_out_pixels_that_are_half_padding():
    t = load_images(PHOTOS / "landscape_101x67.png", mode="square", size=266).transforms[0]
    np.testing.assert_allclose(t.to_model([[0, 0], [101, 67]]), [[0, 44.77], [266, 221.23]], atol=0.01)
    assert t.valid == (0, 45, 266, 221)
    t = load_images(PHOTOS / "portrait_61x133.png", mode="square", size=98).transforms[0]
    np.testing.assert_allclose(t.to_model([[0, 0], [61, 133]]), [[26.53, 0], [71.47, 98]], atol=0.01)
    assert t.valid == (27, 0, 71, 98)


def test_K_moves_with_the_pixels():
    t = ImageTransform(400, 300, 518, 392, 1.295, 1.3066, 0.0, -14.0)
    K = np.array([[500.0, 0, 259], [0, 510, 196], [0, 0, 1]])
    point = np.array([0.3, -0.2, 2.0])
    model, original = (k @ point for k in (K, t.K_to_original(K)))
    np.testing.assert_allclose(t.to_original(model[:2] / model[2]), original[:2] / original[2])


@pytest.mark.parametrize("mode", ["crop", "pad", "square"])
def test_a_map_comes_back_to_original_pixels(tmp_path, mode):
    photo(tmp_path / "a.png", 90, 200)
    t = load_images(tmp_path, mode=mode, size=56).transforms[0]
    ys, xs = np.mgrid[: t.model_height, : t.model_width] + 0.5
    ramp = t.to_original(np.stack([xs, ys], -1)) @ (1.0, 10.0)  # linear in the original coordinates
    ramp[~t.valid_mask()] = np.nan  # must not bleed in
    back = t.map_to_original(ramp.astype(np.float32))
    assert back.shape == (200, 90) and back.dtype == np.float32
    ys, xs = np.mgrid[:200, :90] + 0.5
    expected = xs + 10 * ys
    if mode == "crop":  # 90x200 -> 56x126 -> the middle 56 rows
        rows = np.isfinite(back).all(1)
        assert np.isnan(back[~rows]).all() and 85 <= rows.sum() <= 92
    else:
        rows = np.ones(200, bool)
    inner = slice(
        12, -12
    )  # half a model pixel at the border has no second tap, nor have pixels that show it in part
    np.testing.assert_allclose(back[rows][inner, inner], expected[rows][inner, inner], atol=0.5)
    with pytest.raises(ValueError, match="the map must be"):
        t.map_to_original(np.zeros((3, 3), np.float32))


# ---- bad input


@pytest.fixture
def with_bad_files(tmp_path):
    for name in ("a.jpg", "c.jpg", "e.jpg"):
        photo(tmp_path / name, 200, 150)
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "d.jpg").write_bytes(b"no photograph")
    return tmp_path


def test_a_bad_photograph_is_named(with_bad_files):
    with pytest.raises(ImageError, match=r"b\.jpg is damaged or not an image \(.*truncated"):
        load_images(with_bad_files)
    with pytest.raises(ImageError, match=r"d\.jpg is damaged or not an image \(unknown file format.*\)"):
        load_images(with_bad_files / "d.jpg")


def test_a_photograph_that_may_not_be_read_is_not_called_damaged(with_bad_files, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(ImageError, match=r"a\.jpg: no permission to read it$"):
        load_images(with_bad_files / "a.jpg")


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".tiff"])
def test_truncation_is_seen_in_every_format(tmp_path, suffix):
    rng = np.random.default_rng(0)
    path = tmp_path / f"a{suffix}"
    Image.fromarray(rng.integers(0, 255, (60, 80, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(ImageError, match="a" + suffix.replace(".", r"\.")):
        load_images(path)


def test_skip_bad_goes_on_and_records(with_bad_files):
    images = load_images(with_bad_files, skip_bad=True, size=28)
    assert images.names == ("a.jpg", "c.jpg", "e.jpg") and len(images.pixels) == len(images.transforms) == 3
    assert [Path(path).name for path, _ in images.skipped] == ["b.jpg", "d.jpg"]
    with pytest.raises(ImageError, match="none of the 1 photographs can be read"):
        load_images(with_bad_files / "d.jpg", skip_bad=True)


def test_nothing_there(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ImageError, match="holds no images"):
        load_images(tmp_path)
    with pytest.raises(ImageError, match=r"the pattern .*\*\.jpg holds no images"):
        load_images(str(tmp_path / "*.jpg"))
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg does not exist"):
        load_images([tmp_path / "gone.jpg"], skip_bad=True)
    with pytest.raises(ImageError, match="no photographs were given"):
        load_images([])


def test_bad_arguments(tmp_path):
    photo(tmp_path / "a.png")
    with pytest.raises(
        ValueError, match="size must be a positive multiple .* 14 pixels, not 500; the nearest is 504"
    ):
        load_images(tmp_path, size=500)
    with pytest.raises(ValueError, match="not 0; the nearest is 14"):
        load_images(tmp_path, size=0)
    with pytest.raises(ValueError, match="crop, pad, square, area, wide, not 'stretch'"):
        load_images(tmp_path, mode="stretch")


@pytest.mark.parametrize(
    "size, patch, seen",
    [(518, 14, (518, 392)), (512, 14, (504, 378)), (512, 16, (512, 384)), (20, 14, (14, 14))],
)
def test_wide_is_as_pi3s_evaluation_sizes_photographs(tmp_path, size, patch, seen):
    """640×480: a height in proportion in whole patches, then a width of whole patches; nothing is cut."""
    y, x = np.mgrid[:480, :640]
    Image.fromarray(np.stack([x / 2.6, y / 2, 0 * x], -1).astype(np.uint8)).save(tmp_path / "a.png")
    Image.new("RGB", (300, 500)).save(tmp_path / "b.png")
    images = load_images(tmp_path, ImagePolicy("wide", size, patch))
    assert images.pixels.shape == (2, seen[1], seen[0], 3), "the first one's size is everybody's"
    t = images.transforms[0]
    assert (t.scale_x, t.scale_y, t.offset_x, t.offset_y) == (seen[0] / 640, seen[1] / 480, 0, 0)
    at = t.to_original(np.array([[0.5, 0.5], [seen[0] - 0.5, seen[1] - 0.5]]))
    corner = images.pixels[0, -1, -1].astype(float)
    np.testing.assert_allclose(corner[:2], at[1] / [2.6, 2], atol=seen[0] < 100 and 12 or 2)
