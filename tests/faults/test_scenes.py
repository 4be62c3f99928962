"""A scene's file that is damaged, or that was made to harm."""

import io
import random
import re
import zipfile

import numpy as np
import pytest

from fastvggt_jax import Scene
from fastvggt_jax.errors import Error, InputError
from fastvggt_jax.sources import ImagePolicy, load_images
from tests.export.test_folders import stub
from tests.faults.test_photographs import damaged


@pytest.fixture(scope="module")
def scene():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 30, 40, 3), np.uint8)
    return stub(load_images(pixels, ImagePolicy("square", 28, 14)))


def saved(scene, folder, compression=zipfile.ZIP_STORED, **members):
    """As numpy writes it, but for the compression and for members, as bytes, of one's own."""
    scene.save(folder)
    with np.load(folder / "scene.npz") as archive:
        arrays = dict(archive)
    with zipfile.ZipFile(folder / "scene.npz", "w", compression) as archive:
        for name, array in arrays.items():
            plain = io.BytesIO()
            np.save(plain, array)
            archive.writestr(f"{name}.npy", members.get(name, plain.getvalue()))
    return (folder / "scene.npz").read_bytes()


def flipped(raw, seed):
    """Bytes changed where zip and numpy say what there is."""
    rng, data = random.Random(seed), bytearray(raw)
    marks = [found.start() for found in re.finditer(b"PK\x01\x02|PK\x03\x04|PK\x05\x06|\x93NUMPY", raw)]
    for _ in range(rng.randint(1, 4)):
        data[min(rng.choice(marks) + rng.randrange(120), len(raw) - 1)] = rng.randrange(256)
    return bytes(data)


def fuzz(scene, folder, compression, seeds):
    raw = saved(scene, folder, compression)
    for seed in seeds:
        change = flipped if seed % 2 else damaged
        (folder / "scene.npz").write_bytes(change(raw, seed))
        try:
            found = Scene.load(folder)
        except Error as error:
            assert "scene.npz" in str(error) and "\n" not in str(error) and len(str(error)) < 1000, seed
            continue
        for name in ("names", "transforms", "intrinsics", "paths", "white", "conf_floor", "metric_scale"):
            assert getattr(found, name) == getattr(scene, name), seed
        for name in (
            "K",
            "cam_from_world",
            "points",
            "points_conf",
            "depth",
            "depth_conf",
            "valid",
            "colors",
        ):
            np.testing.assert_array_equal(getattr(found, name), getattr(scene, name), err_msg=str(seed))


COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


@pytest.mark.filterwarnings("ignore")  # numpy's, of odd headers
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_damaged_scene_is_a_sentence_or_the_same_scene(scene, tmp_path, compression):
    fuzz(scene, tmp_path, compression, range(100))


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_many_damaged_scenes(scene, tmp_path, compression):
    fuzz(scene, tmp_path, compression, range(1000, 4000))


def test_a_little_file_that_unpacks_to_a_large_one_is_not_unpacked(scene, tmp_path):
    header = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (1 << 24,)}
    np.lib.format.write_array_header_1_0(header, shape)
    saved(scene, tmp_path, zipfile.ZIP_DEFLATED, depth=header.getvalue() + bytes(1 << 26))
    with pytest.raises(InputError, match="is damaged, or no scene"):
        Scene.load(tmp_path)
