"""COLMAP models that contradict themselves, and whose errors name the argument."""

import struct

import numpy as np
import pytest

from fastvggt_jax.errors import Error
from fastvggt_jax.io.colmap import read_model

CAMERA = "1 PINHOLE 80 60 50 50 40 30\n"
IMAGE = "{0} 1 0 0 0 0 0 0 1 {1}\n\n"
IMAGES = IMAGE.format(1, "0.jpg") + IMAGE.format(2, "1.jpg")


def model(folder, cameras=CAMERA, images=IMAGES, encoding="utf-8"):
    (folder / "cameras.txt").write_bytes(cameras.encode(encoding))
    (folder / "images.txt").write_bytes(images.encode(encoding))
    return folder


def test_a_model_in_text_may_begin_with_a_mark(tmp_path):
    found = read_model(model(tmp_path, encoding="utf-8-sig"))
    assert [one.name for one in found] == ["0.jpg", "1.jpg"] and found[0].K[0, 0] == 50


@pytest.mark.parametrize(
    "changes, match",
    [
        (dict(images=IMAGES + IMAGE.format(3, "0.jpg")), "names 0.jpg twice"),
        (dict(cameras=CAMERA + CAMERA.replace("50 50", "90 90")), "camera 1 is there twice"),
        (dict(cameras=CAMERA.replace("PINHOLE", "FOV")), "a camera of the model FOV"),
        (dict(images=""), "has no images"),
        (dict(encoding="utf-16"), "is damaged, or no COLMAP model"),
    ],
)
def test_a_model_that_is_none_is_a_sentence(tmp_path, changes, match):
    with pytest.raises(Error, match=match) as raised:
        read_model(model(tmp_path, **changes), "intrinsics")
    assert raised.value.argument == "intrinsics"


def test_a_camera_that_comes_twice_in_a_binary_model(tmp_path):
    camera = struct.pack("<iiQQ4d", 1, 1, 80, 60, 50, 50, 40, 30)
    (tmp_path / "cameras.bin").write_bytes(struct.pack("<Q", 2) + camera * 2)
    image = struct.pack("<i7di", 1, *np.eye(7)[0], 1) + b"0.jpg\0" + struct.pack("<Q", 0)
    (tmp_path / "images.bin").write_bytes(struct.pack("<Q", 1) + image)
    with pytest.raises(Error, match="camera 1 is there twice"):
        read_model(tmp_path)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(Error, match="holds no COLMAP model") as raised:
        read_model(tmp_path, "intrinsics")
    assert raised.value.argument == "intrinsics"
