"""Known cameras and depth as a model's inputs: every reader against a rendered scene with true cameras."""

import dataclasses
import io
import json
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from fastvggt_jax import errors, export
from fastvggt_jax.export.base import ExportOptions
from fastvggt_jax.export.cameras import write_cameras
from fastvggt_jax.models.conditions import prepare, rays_of
from fastvggt_jax.refine.given import conditions_of, depth_maps, in_model
from fastvggt_jax.refine.positions import known_positions
from fastvggt_jax.sources import ImageTransform
from fastvggt_jax.sources.photographs import turned_unseen
from tests.export.truth import true_scene


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    return true_scene(tmp_path_factory.mktemp("truth"), "crop")


def written(truth, form, folder):
    if form == "cameras":
        write_cameras(truth.scene, folder / "cameras.json")
        return folder / "cameras.json"
    export.write(truth.scene, folder, (form,), ExportOptions(track_points=50))
    return folder / "nerfstudio" / "transforms.json" if form == "nerfstudio" else folder


@pytest.mark.parametrize("form", ["cameras", "colmap", "colmap-text", "nerfstudio"])
def test_cameras_of_a_file_see_the_scene_where_it_is(truth, form, tmp_path):
    """The point that each pixel's ray, as the model is fed it, meets at the true depth is the true one, seen
    from the pose that it is fed: pixels' centres, axes and directions all at once.
    """
    given, known = conditions_of(truth.images, cameras=str(written(truth, form, tmp_path)))
    scene, F = truth.scene, len(truth.scene.names)
    assert known == {"cameras": F} and given.pose_mask is None and given.ray_mask is None
    H, W = scene.depth.shape[1:]
    first = scene.world_from_cam[0]  # the world of what is given: any will do
    for i in range(F):
        local = np.asarray(rays_of(given.K[0, i], H, W)) * scene.depth[i][..., None]
        pose = first @ given.world_from_cam[0, i]
        world = local @ pose[:3, :3].T + pose[:3, 3]
        at = scene.valid[i]
        np.testing.assert_allclose(world[at], scene.points[i][at], atol=5e-3)


def test_what_a_file_does_not_name_is_masked(truth, tmp_path):
    path = written(truth, "cameras", tmp_path)
    content = json.loads(path.read_text())
    del content["images"][1]
    path.write_text(json.dumps(content))
    given, known = conditions_of(truth.images, cameras=str(path))
    F = len(truth.scene.names)
    wanted = [[i != 1 for i in range(F)]]
    assert known == {"cameras": F - 1} and given.pose_mask.tolist() == given.ray_mask.tolist() == wanted


@pytest.mark.parametrize("missing", [1, 0])
def test_neither_a_world_far_away_nor_views_without_a_camera_blur_the_others(truth, missing, tmp_path):
    """Metres of UTM, of which float32 knows halves; and the mean distance, in which a model measures where no
    depth gives the unit, is that of the views that are known.
    """
    path = written(truth, "cameras", tmp_path)
    content = json.loads(path.read_text())
    true = np.array([one["world_from_cam"] for one in content["images"]])
    for one in content["images"]:
        for row, far in zip(one["world_from_cam"], (5e5, 5.4e6, 100), strict=False):
            row[3] += far
    del content["images"][missing]
    path.write_text(json.dumps(content))
    given, _ = conditions_of(truth.images, cameras=str(path))
    F = len(true)
    seen = [i for i in range(F) if i != missing]
    first = seen[0]
    pose = given.world_from_cam[0]
    wanted = np.linalg.inv(true[first]) @ true
    relative = np.linalg.inv(pose[first]) @ pose
    np.testing.assert_allclose(relative[seen], wanted[seen], atol=1e-5)
    size = truth.images.pixels.shape[1:3]
    mean = np.linalg.norm(wanted[seen[1:], :3, 3], axis=-1).mean()  # of the others from the first
    np.testing.assert_allclose(prepare(given, 1, F, size).unit, mean, rtol=1e-5)
    # A chunk's own first view is another one, and it may be the one that is missing.
    for chunk in (np.arange(missing, F), np.arange(2, F), np.arange(missing, 4)):
        there = true[[i for i in chunk if i != missing], :3, 3]
        mean = np.linalg.norm(there[1:] - there[0], axis=-1).mean()
        fed = prepare(jax.tree.map(lambda x, c=chunk: x[:, c], given), 1, len(chunk), size)
        np.testing.assert_allclose(fed.unit, mean, rtol=1e-5)


@pytest.mark.parametrize("form", ["cameras", "colmap", "nerfstudio"])
def test_others_cameras_of_a_photograph_that_exif_turns_unseen_are_refused(truth, form, tmp_path):
    """They count its pixels as stored, and its size is the same. Ours count them upright."""
    path = written(truth, form, tmp_path)
    stored = tmp_path / "stored.jpg"
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", (160, 120)).save(stored, exif=exif)
    frames = list(truth.images.frames)
    frames[1] = frames[1]._replace(path=stored)
    images = dataclasses.replace(truth.images, frames=tuple(frames))
    for option in ("cameras", "intrinsics"):
        ask = lambda option=option: conditions_of(images, **{option: str(path)})
        if form == "cameras":
            assert ask()[0].K.shape == (1, len(frames), 3, 3)
            continue
        match = (
            f"^{option} .* may be of .*stored.jpg as it is stored, which its EXIF orientation turns: save it"
        )
        with pytest.raises(errors.InputError, match=match):
            ask()


@pytest.mark.parametrize(
    "size, orientation, wanted",
    [((4, 2), 1, False), ((4, 2), 3, True), ((4, 2), 6, False), ((4, 4), 6, True), ((4, 4), 9, False)],
)
def test_a_turn_is_unseen_where_the_size_stays(size, orientation, wanted, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size).save(tmp_path / "a.jpg", exif=exif)
    assert turned_unseen(tmp_path / "a.jpg") == wanted


@pytest.mark.parametrize("form", ["npz", "npy", "png"])
def test_depth_maps_are_fed_where_they_were_seen(truth, form, tmp_path):
    """In the photographs' pixels, and sampled to the model's: nearest, so to within a pixel's step."""
    if form == "npz":
        export.write(truth.scene, tmp_path, ("depth",), ExportOptions(depth_original=True))
        folder = tmp_path / "depth"
    else:
        folder = tmp_path
        for i, (name, t) in enumerate(zip(truth.scene.names, truth.scene.transforms, strict=True)):
            depth = np.nan_to_num(t.map_to_original(truth.scene.depth[i]))
            if form == "npy":
                np.save(folder / f"{name}.npy", depth)
            else:
                Image.fromarray((1000 * depth).astype(np.uint16)).save(folder / f"{name.split('.')[0]}.png")
    given, known = conditions_of(truth.images, depth=str(folder))
    assert known == {"depth": len(truth.scene.names)} and given.depth_mask is None
    at = truth.scene.valid & (given.depth[0] > 0)
    assert at.sum() > 0.9 * truth.scene.valid.sum()
    error = np.abs(given.depth[0] - truth.scene.depth)[at]
    assert np.median(error) < 0.01 and np.isfinite(given.depth).all()


def test_depth_is_sampled_as_upstream_does():
    depth = np.arange(15.0).reshape(3, 5)
    t = ImageTransform(5, 3, 7, 6, 7 / 5, 2.0, 0, 0)
    wanted = depth[np.arange(6) * 3 // 6][:, np.arange(7) * 5 // 7]
    np.testing.assert_array_equal(in_model(depth, t), wanted)
    padded = dataclasses.replace(t, model_width=9, offset_x=1.0)
    np.testing.assert_array_equal(in_model(depth, padded), np.pad(wanted, ((0, 0), (1, 1))))


def test_nerfstudio_may_say_it_once_for_all_frames(truth, tmp_path):
    path = written(truth, "nerfstudio", tmp_path)
    content = json.loads(path.read_text())
    before, _ = conditions_of(truth.images, cameras=str(path))
    same = {"w", "h", "fl_x", "fl_y", "cx", "cy"}
    frame = content["frames"][0]
    content |= {key: frame[key] for key in same}
    content["frames"][0] = {key: value for key, value in frame.items() if key not in same}
    content["frames"][0]["k1"] = 0.1
    path.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="its lenses have distortion, which is left out"):
        after, _ = conditions_of(truth.images, cameras=str(path))
    np.testing.assert_array_equal(before.K, after.K)


def refused(truth, match, **given):
    with pytest.raises(errors.Error, match=match):
        conditions_of(truth.images, **given)


def test_what_does_not_fit_is_one_sentence(truth, tmp_path):
    name, size = truth.scene.names[0], truth.scene.transforms[0]
    path = written(truth, "cameras", tmp_path)
    content = json.loads(path.read_text())
    for one in content["images"]:
        one["name"] = "other-" + one["name"]
    (tmp_path / "others.json").write_text(json.dumps(content))
    refused(
        truth,
        "names none of the photographs, such as .*; it has other-",
        cameras=str(tmp_path / "others.json"),
    )
    (tmp_path / "odd.json").write_text(json.dumps({"frames": [{"file_path": name}]}))
    refused(truth, "is no transforms.json of nerfstudio: w, h or fl_x", cameras=str(tmp_path / "odd.json"))
    refused(truth, "cameras must be a cameras.json, a transforms.json", cameras=" ")
    refused(truth, "no such folder", depth=str(tmp_path / "none"))
    (tmp_path / "d").mkdir()
    refused(truth, "holds none of the photographs'", depth=str(tmp_path / "d"))
    shape = size.original_height, size.original_width
    for array, match in (
        (np.ones((7, 90)), "is .7, 90., but .* pixels: depth is .height, width. in its proportions"),
        (np.full(shape, -1.0), "is negative somewhere: 0 is what is not known"),
        (np.array("text"), "cannot be read"),
        (np.full(shape, 1e10), r"npy is beyond 1e\+09 somewhere: 0 is what is not known"),
    ):
        np.save(tmp_path / "d" / f"{name}.npy", array)
        refused(truth, match, depth=str(tmp_path / "d"))


def test_depth_that_may_be_of_two_photographs_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((3, 4), np.float32))
    names, sizes = ("x/a.jpg", "y/a.jpg"), [(4, 3)] * 2
    match = "a.npy may be of x/a.jpg or y/a.jpg: name it x_a.jpg.npy or y_a.jpg.npy"
    with pytest.raises(errors.InputError, match=match):
        depth_maps(str(tmp_path), names, sizes)
    np.save(tmp_path / "y_a.jpg.npy", np.full((3, 4), 2, np.float32))
    found = depth_maps(str(tmp_path), names, sizes)
    assert [one.max() for one in found.values()] == [1, 2]


@pytest.mark.parametrize(
    "lens, read", [("OPENCV_FISHEYE", False), ("EQUIRECTANGULAR", False), ("OPENCV", True)]
)
def test_nerfstudios_lenses_that_are_no_pinhole_are_refused(truth, lens, read, tmp_path):
    """... where K is asked for; poses are the same whatever the lens."""
    path = written(truth, "nerfstudio", tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"camera_model": lens}))
    if read:
        assert conditions_of(truth.images, cameras=str(path))[1]
    else:
        refused(truth, f"has a camera of the model {lens}; what is read: SIMPLE_PINHOLE", cameras=str(path))
    assert len(known_positions(str(path), truth.images.names).names) == len(truth.images.names)


def damaged_depth(kind, shape):
    """(ending, bytes) of a file."""
    file = io.BytesIO()
    if kind == "structured":
        np.save(file, np.zeros(shape, [("a", "f4"), ("b", "f4")]))
        return ".npy", file.getvalue()
    if kind == "npy named npz":
        np.save(file, np.ones(shape))
        return ".npz", file.getvalue()
    np.savez_compressed(file, depth=np.random.default_rng(0).random(shape))
    whole = bytearray(file.getvalue())
    if kind == "huge":
        file = io.BytesIO()
        header = {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**7)}
        np.lib.format.write_array_header_1_0(file, header)
        return ".npy", file.getvalue() + bytes(100)
    if kind == "npz named npy":
        return ".npy", bytes(whole)
    if kind == "flipped":
        whole[len(whole) // 2] ^= 255
    return ".npz", bytes({"cut": whole[: len(whole) // 2], "empty": b""}.get(kind, whole))


@pytest.mark.parametrize(
    "kind",
    [
        *("cut", "flipped", "empty", "npy named npz", "npz named npy", "structured", "complex", "picture"),
        *("huge", "tiff named png"),
    ],
)
def test_damaged_depth_is_one_sentence(truth, kind, tmp_path):
    shape = truth.scene.transforms[0].original_height, truth.scene.transforms[0].original_width
    stem = tmp_path / truth.scene.names[0]
    if kind == "complex":
        np.save(f"{stem}.npy", np.ones(shape, complex))
    elif kind == "tiff named png":
        Image.fromarray(np.full(shape, 1000, np.uint16)).save(f"{stem}.png", "TIFF")
    elif kind == "picture":
        Image.fromarray(np.full(shape, 1000, np.uint16)).save(f"{stem}.png")
        whole = Path(f"{stem}.png").read_bytes()
        Path(f"{stem}.png").write_bytes(whole[: len(whole) // 2])
    else:
        ending, content = damaged_depth(kind, shape)
        Path(f"{stem}{ending}").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused(truth, f"^depth .*{stem.name}.* cannot be read: ", depth=str(tmp_path))
