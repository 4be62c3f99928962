"""Photographs that a text file or a COLMAP model names."""

import pytest
from PIL import Image

from fastvggt_jax import export
from fastvggt_jax.errors import ImageError, MissingError
from fastvggt_jax.export import ExportOptions
from fastvggt_jax.sources import ImagePolicy, load_images
from tests.export.truth import true_scene

POLICY = ImagePolicy("crop", 28, 14)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Photographs 0 … 5, in a folder photos."""
    folder = tmp_path_factory.mktemp("truth") / "photos"
    return folder, true_scene(folder, "crop").scene


def test_a_list_keeps_its_order_and_is_relative_to_itself(scene, tmp_path):
    folder, _ = scene
    (folder.parent / "list.txt").write_text("# mine\nphotos/3.png\n\n  photos/0.png \nphotos/*1.png\n")
    assert load_images(folder.parent / "list.txt", POLICY).names == ("3.png", "0.png", "1.png")
    for text, match in (("# nothing\n", "names no photographs"), ("list.txt", "names another list")):
        (folder.parent / "list.txt").write_text(text)
        with pytest.raises(ImageError, match=match):
            load_images(folder.parent / "list.txt", POLICY)
    with pytest.raises(MissingError, match="gone.txt: no such file"):
        load_images(tmp_path / "gone.txt", POLICY)


def test_the_folder_of_a_list_is_no_pattern(scene, tmp_path):
    folder, _ = scene
    (tmp_path / "a[1]").mkdir()
    for name in ("0.png", "1.png"):
        (tmp_path / "a[1]" / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "a[1]" / "list.txt").write_text("1.png\n*0.png\n")
    assert load_images(tmp_path / "a[1]" / "list.txt", POLICY).names == ("1.png", "0.png")


def test_a_colmap_folder_gives_its_photographs(scene, tmp_path):
    _, true = scene
    export.write(true, tmp_path, ("splat",), ExportOptions(track_points=100, copy_photographs=True))
    images = load_images(tmp_path / "splat", POLICY)
    assert len(images.names) == len(true.names)
    assert images.frames[4].path == tmp_path / "splat" / "images" / images.names[4]
    (tmp_path / "splat" / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(MissingError, match="has no photographs: .* is neither in it nor in images/"):
        load_images(tmp_path / "splat", POLICY)
    (tmp_path / "splat" / "sparse" / "0" / "images.bin").write_bytes(b"\0" * 20)
    with pytest.raises(ValueError, match="is damaged, or no COLMAP model|has no images"):
        load_images(tmp_path / "splat", POLICY)


@pytest.mark.parametrize("name", [".", "..", "list.txt", "a.mp4", "z" * 300 + ".jpg"])
def test_what_a_model_names_is_a_photograph_and_nothing_else(tmp_path, name):
    """Above all not the model again, without end."""
    (tmp_path / "cameras.txt").write_text("1 PINHOLE 60 40 50 50 30 20\n")
    (tmp_path / "images.txt").write_text(f"1 1 0 0 0 0 0 0 1 !.jpg\n\n2 1 0 0 0 0 0 0 1 {name}\n\n")
    Image.new("RGB", (60, 40)).save(tmp_path / "!.jpg")
    with pytest.raises(MissingError, match=rf"names {name}, which is no file in") as raised:
        load_images(tmp_path, POLICY)
    assert raised.value.argument == "source"
    (tmp_path / "images.txt").write_text(f"1 1 0 0 0 0 0 0 1 {'z' * 300}.jpg\n\n")
    with pytest.raises(MissingError, match="has no photographs"):
        load_images(tmp_path, POLICY)
