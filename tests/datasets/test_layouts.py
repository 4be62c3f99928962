"""Every data set's layout, written from what is true, read again, and measured with truth as prediction."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fastvggt_jax import errors
from fastvggt_jax.datasets import co3dv2, dtu, eth3d, idr, nrgbd, realestate10k, seven_scenes, tanksandtemples
from fastvggt_jax.datasets.base import Options, load_dataset
from fastvggt_jax.datasets.files import digest, drawn, strided
from fastvggt_jax.datasets.rendered import Rendered
from fastvggt_jax.evaluate.measures import Reference, measure
from fastvggt_jax.evaluate.protocols import PI3, rules_for
from fastvggt_jax.evaluate.runner import evaluate
from fastvggt_jax.models.prediction import Reconstruction
from fastvggt_jax.sources import ImagePolicy, load_images
from tests.datasets import layouts

SHARED = Path(__file__).parents[2].parent / "shared"
LISTS, LAYOUT = SHARED / "evaluation", SHARED / "layout"
HERE = (1.0, np.eye(3), np.zeros(3))
WIDTH, HEIGHT = 518, 14  # at which clouds are compared, so that pixels are pixels


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The photographs here are not of the released size, for which these cameras are."""
    for module in (nrgbd, seven_scenes):
        monkeypatch.setattr(module, "SIZE", (WIDTH, HEIGHT), raising=False)


@pytest.mark.parametrize("name", ["nrgbd", "7scenes"])
def test_photographs_of_another_size_than_the_cameras_are_refused(name, monkeypatch, tmp_path):
    _, data = written(name, tmp_path, 2)
    monkeypatch.undo()
    with pytest.raises(errors.SceneError, match="is 518x14 pixels, and .* are known for 640x480"):
        data[0]


def scene(frames=6, K=None):
    """Wavy walls at depths that 16 bits hold, in eighths of a metre; a corner of each is not known."""
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = 5 + np.sin(x / 40 + np.arange(frames)[:, None, None]) + 0.5 * np.cos(y / 6)
    depth = (np.rint(8 * waves) / 8).astype(np.float32)
    depth[:, -5:, -40:] = 0
    images = np.stack([x / 3, 9 * y, 0 * x], -1)[None] + 30 * np.arange(frames)[:, None, None, None]
    turns = Rotation.from_rotvec(rng.uniform(-0.4, 0.4, (frames, 3))).as_matrix()
    poses = np.concatenate([turns, rng.uniform(-1, 1, (frames, 3, 1))], 2)
    K = np.array([[300, 0, 250.5], [0, 310, 12], [0, 0, 1]]) if K is None else K
    return layouts.True_((images % 256).astype(np.uint8), K, poses, depth)


def in_millimetres(true):
    poses = true.poses.copy()
    poses[:, :, 3] *= 1000
    return true._replace(depth=true.depth * 1000, poses=poses)


# name: (writes it, options)
LAYOUTS = {
    "realestate10k": (layouts.realestate10k, {"views": 6}),
    "co3dv2": (layouts.co3dv2, {"views": 6}),
    "tanksandtemples": (layouts.tanksandtemples, {}),
    "eth3d": (layouts.eth3d, {"stride": 1}),
    "7scenes": (layouts.seven_scenes, {"stride": 1}),
    "nrgbd": (layouts.nrgbd, {"stride": 1}),
    "dtu": (layouts.dtu, {"stride": 1}),
    "scannet": (layouts.scannet, {"views": 6}),
    "tum": (layouts.tum, {"views": 6}),
    "sintel": (layouts.sintel, {}),
    "bonn": (layouts.bonn, {}),
    "kitti": (layouts.kitti, {}),
    "colmap": (layouts.colmap, {}),
    "nerfstudio": (layouts.nerfstudio, {}),
    "idr": (layouts.idr, {}),
}
KS = {"7scenes": seven_scenes.K, "nrgbd": nrgbd.K}
BEST = {
    "cameras": {"AUC@5": 100, "AUC@15": 100, "AUC@30": 100, "RRA@5": 100, "RTA@5": 100},
    "Procrustes": {"normalised ATE": 0},
    "trajectory": {"trajectory ATE": 0, "RPE translation": 0, "RPE rotation": 0},
    "clouds": {"Acc mean": 0, "Comp mean": 0, "Acc median": 0, "NC mean": 1, "NC median": 1},
    "video depth": {"AbsRel, scale": 0, "delta, scale": 100},
}


def found(true, similarity=HERE, mirror=None):
    """The truth as a reconstruction in another world, or in a mirror: without axis B, in numpy."""
    s, R, t = similarity
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(true.K).T
    c2w = true.world_from_cam
    local = rays * true.depth[..., None]
    points = np.einsum("fij,fhwj->fhwi", c2w[:, :3, :3], local) + c2w[:, None, None, :3, 3]
    turned, centres = R @ c2w[:, :3, :3], s * c2w[:, :3, 3] @ R.T + t
    points = s * points @ R.T + t
    depth = s * true.depth
    if mirror is not None:
        M = np.diag(np.where(np.arange(3) == mirror, -1.0, 1))
        points, centres, turned = points @ M, centres @ M, M @ turned @ M
        depth = depth[:, :, ::-1]
    poses = np.concatenate([turned.swapaxes(1, 2), -np.einsum("fji,fj->fi", turned, centres)[..., None]], 2)
    conf = np.ones_like(depth)
    return Reconstruction(poses, None, depth, conf, points.astype(np.float32), conf)


def in_order(true, numbers):
    return true._replace(**{name: getattr(true, name)[numbers] for name in ("images", "poses", "depth")})


CLOUDS = ("eth3d", "7scenes", "nrgbd", "dtu")


def written(name, root, frames=6):
    true = scene(54 if name == "co3dv2" else frames, KS.get(name))
    true = in_millimetres(true) if name == "dtu" else true
    write, options = LAYOUTS[name]
    write(root if name not in ("colmap", "nerfstudio", "idr") else root / "mine", true)
    return true, load_dataset(name, Options(root=root, **options))


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_truth_as_prediction_is_perfect_in_any_world_and_not_in_a_mirror(name, tmp_path):
    frames = 2 if name in CLOUDS else 6
    true, data = written(name, tmp_path, frames)
    sample, rules = data[0], rules_for(data)
    assert rules.protocol.name == PI3 and data.describe()["size"] is None
    numbers = data.frames[sample.name] or list(range(frames))
    assert len(set(numbers)) == frames
    true = in_order(true, numbers)
    policy = rules.policy(ImagePolicy("crop", 518, 14))
    assert (policy.mode, policy.size) == ("wide", 518 if rules.wanted == ("clouds",) else 512)
    images = load_images(sample.images, policy)
    whole = load_images(sample.images, ImagePolicy("wide", WIDTH, 14)).pixels
    assert whole.shape == true.images.shape
    if name == "dtu":  # is twice as large, and blurred where it is made smaller
        assert np.abs(whole[..., 0].astype(float) - true.images[..., 0]).mean() < 2
    else:
        np.testing.assert_array_equal(whole, true.images)
    reference = Reference(sample, images.transforms, rules.wanted, rules.field, rules.order)
    elsewhere = (3.7, Rotation.from_rotvec([0.5, -2, 1]).as_matrix(), np.array([3.0, -20, 7]))
    best = {metric: value for group in rules.wanted for metric, value in BEST[group].items()}
    unit = 1000 if name == "dtu" else 1
    for similarity in (HERE, elsewhere):
        values = measure(found(true, similarity), reference)[1]
        for metric, value in best.items():
            assert values[metric] == pytest.approx(value, abs=3e-5 * unit if value == 0 else 1e-3), metric
    wrong = measure(found(true, elsewhere, mirror=1), reference)[1]
    better = {metric: wrong[metric] - value for metric, value in best.items()}
    some = {"cameras": "AUC@30", "trajectory": "trajectory ATE", "clouds": "Acc mean"}
    for group in rules.wanted:
        if group in some:
            assert abs(better[some[group]]) > 0.02, group
        elif group == "video depth":
            assert better["AbsRel, scale"] > 0.05


@pytest.mark.parametrize(
    "name, write",
    [
        ("realestate10k", partial(layouts.realestate10k, released=True)),
        ("scannet", partial(layouts.scannet, prepared=False)),
        ("tum", partial(layouts.tum, prepared=False)),
        ("bonn", partial(layouts.bonn, prepared=False)),
        ("tanksandtemples", lambda root, true: layouts.colmap(root / "Barn", true)),
        ("colmap", lambda root, true: layouts.colmap(root, true, binary=False)),
        ("nerfstudio", layouts.nerfstudio),
        ("idr", layouts.idr),
    ],
)
def test_other_ways_to_lie_there(name, write, tmp_path):
    true = scene()
    write(tmp_path / "root", true)
    views = {"views": 6} if name in ("realestate10k", "scannet", "tum") else {}
    data = load_dataset(name, Options(root=tmp_path / "root", **views))
    assert len(data) == 1 or name in ("tum", "bonn")
    sample = data[0]
    true = in_order(true, list(data.frames[sample.name]) or list(range(6)))
    pixels = load_images(sample.images, ImagePolicy("wide", WIDTH, 14)).pixels
    if name == "bonn":
        np.testing.assert_array_equal(np.stack(list(sample.truth.depth)), true.depth)
    else:
        np.testing.assert_allclose(sample.truth.cam_from_world, true.poses, atol=1e-9)
    np.testing.assert_array_equal(pixels, true.images)
    if name in ("colmap", "idr"):
        np.testing.assert_allclose(sample.truth.K, np.tile(true.K, (6, 1, 1)), atol=1e-9)


def test_7_scenes_depth_is_registered_where_the_copy_is_as_released(tmp_path, monkeypatch):
    """By the definition, a pixel at a time; what lies as .depth.proj.png is taken as it is."""
    rng = np.random.default_rng(0)
    width, height = 64, 48
    raw = rng.integers(800, 4000, (height, width)).astype(np.uint16)
    raw[:, ::7], raw[3] = 65535, 0
    expected = np.full((height, width), np.inf)
    for v, u in np.argwhere((raw > 0) & (raw < 65535)):
        z = float(np.float32(raw[v, u]) / np.float32(1000))
        there = np.array([(u + 0.5 - width / 2) / 585 * z, (v + 0.5 - height / 2) / 585 * z, z, 1])
        x, y, z = seven_scenes.COLOUR_FROM_DEPTH @ there
        column, row = round(525 * x / z + width / 2), round(525 * y / z + height / 2)
        if 0 <= column < width and 0 <= row < height:
            expected[row, column] = min(expected[row, column], z)
    expected = np.where(np.isfinite(expected), np.floor(1000 * expected.astype(np.float32)), 0)
    assert 0.3 < (expected > 0).mean() < 0.9
    np.testing.assert_allclose(np.linalg.det(seven_scenes.COLOUR_FROM_DEPTH[:, :3]), 1, atol=1e-9)
    monkeypatch.setattr(seven_scenes, "SIZE", (width, height))
    folder = tmp_path / "chess" / "seq-03"
    for stem in ("frame-000000", "frame-000001"):
        layouts.save(np.zeros((height, width, 3), np.uint8), folder / f"{stem}.color.png")
        layouts.save(raw, folder / f"{stem}.depth.png")
        layouts.text(folder / f"{stem}.pose.txt", layouts.lines(np.eye(4)))
    layouts.save(raw, folder / "frame-000001.depth.proj.png")
    ours, theirs = load_dataset("7scenes", Options(root=tmp_path, stride=1))[0].truth.depth
    np.testing.assert_array_equal(np.rint(1000 * ours), expected)
    np.testing.assert_array_equal(np.rint(1000 * theirs), np.where(raw < 10_000, raw, 0))


def test_views_are_spread_evenly(tmp_path):
    layouts.tanksandtemples(tmp_path, scene())
    data = load_dataset("tanksandtemples", Options(root=tmp_path, views=3))
    assert [frame.path.stem for frame in data[0].images] == ["000001", "000003", "000006"]
    assert data.describe()["views"] == 3


# ---- lists of frames


def test_the_first_draws_are_those_of_the_published_lists():
    assert drawn({"000c3ab189999a83": 279}, 10)["000c3ab189999a83"] == [
        *(30, 126, 199, 142, 254, 237, 97, 206, 258, 144)
    ]
    assert drawn({"110_13051_23361": 202}, 10)["110_13051_23361"] == [
        *(95, 15, 30, 159, 186, 115, 69, 172, 161, 45)
    ]
    assert [len(strided(n, k)) for n, k in ((1000, 200), (500, 200), (1000, 40), (500, 40), (49, 5))] == [
        *(5, 3, 25, 13, 10)
    ]


@pytest.mark.skipif(not LISTS.is_dir(), reason="the published lists are not in the project")
def test_the_generated_lists_are_the_published_ones():
    read = lambda name: json.loads((LISTS / name).read_text())
    for name, stored, published in (
        ("re10k", "Re10K_relpose_seq-id-map_seed42.json", realestate10k.RealEstate10K.published),
        ("co3dv2", "CO3Dv2_relpose_seq-id-map_seed42.json", co3dv2.CO3Dv2.published),
    ):
        counts = read(f"{name}_frames_per_sequence.json")
        stored = read(stored)
        found = drawn({sequence: counts[sequence] for sequence in stored}, 10)
        assert found == stored and digest(found) in published
    for stored, data, stride in (
        ("7scenes_mv-recon_seq-id-map-kf200.json", seven_scenes.SevenScenes, 200),
        ("7scenes_mv-recon_seq-id-map-kf40.json", seven_scenes.SevenScenes, 40),
        ("DTU_mv-recon_seq-id-map-kf5.json", dtu.DTU, 5),
        ("ETH3D_mv-recon_seq-id-map-kf5.json", eth3d.ETH3D, 5),
        ("NRGBD_mv-recon_seq-id-map-kf500.json", nrgbd.NRGBD, 500),
        ("NRGBD_mv-recon_seq-id-map-kf100.json", nrgbd.NRGBD, 100),
    ):
        stored = read(stored)
        assert digest(stored) in data.published
        for scene_, numbers in stored.items():
            assert numbers == strided(max(numbers) + 1, stride), scene_
    names = {f"{s}/seq-{n:02}" for s, numbers in seven_scenes.SEQUENCES.items() for n in numbers}
    assert names == set(read("7scenes_mv-recon_seq-id-map-kf40.json"))
    assert {f"scan{n}" for n in dtu.SCANS} == set(read("DTU_mv-recon_seq-id-map-kf5.json"))
    assert set(nrgbd.ALL) == set(read("NRGBD_mv-recon_seq-id-map-kf500.json"))
    views = {scene_: len(numbers) for scene_, numbers in read("ETH3D_mv-recon_seq-id-map-kf5.json").items()}
    assert [views[scene_] for scene_ in eth3d.ALL] == [8, 9, 9, 16, 7, 3, 6, 3, 8, 7, 7, 5, 9]
    sequences = (LISTS / "re10k_test_1719.txt").read_text().split()
    assert sequences == sorted(read("Re10K_relpose_seq-id-map_seed42.json")) and len(sequences) == 1719


def test_a_list_of_the_users_own(tmp_path):
    layouts.realestate10k(tmp_path / "root", scene())
    given = tmp_path / "frames.json"
    given.write_text(json.dumps({"000c3ab189999a83": [5, 0, 3], "ffff": [1, 2]}))
    data = load_dataset("realestate10k", Options(root=tmp_path / "root", frames=given))
    np.testing.assert_allclose(data[0].truth.cam_from_world, scene().poses[[5, 0, 3]])
    assert data.describe()["frames"] == {"000c3ab189999a83": [5, 0, 3], "ffff": [1, 2]}
    assert "of this copy" in data.describe()["frame_list"]
    with pytest.raises(errors.SceneError):
        data[1]
    given.write_text(json.dumps({"000c3ab189999a83": [5, 258]}))
    with pytest.raises(errors.SceneError, match="goes to number 258, and the copy has 6 frames"):
        load_dataset("realestate10k", Options(root=tmp_path / "root", frames=given))[0]
    for content, sentence in (
        ('{"a": [1.5]}', "must hold an object of lists"),
        ('{"a": [1]}', "none of which"),
    ):
        given.write_text(content)
        with pytest.raises(errors.InputError, match=sentence) as error:
            load_dataset("realestate10k", Options(root=tmp_path / "root", frames=given))
        assert error.value.argument == "frames"


def test_a_list_of_other_sequences_is_refused(tmp_path):
    layouts.co3dv2(tmp_path, scene(1), names=("short",))
    (tmp_path / "frames.json").write_text('{"elsewhere": [1, 2]}')
    with pytest.raises(errors.InputError, match="names 1 scenes, such as elsewhere, none of which is in"):
        load_dataset("co3dv2", Options(root=tmp_path, frames=tmp_path / "frames.json"))
    with pytest.raises(errors.InputError, match="root .* holds no scene that can be measured") as error:
        load_dataset("co3dv2", Options(root=tmp_path))
    assert error.value.argument == "root"


def test_a_list_that_goes_beyond_a_sequence_of_co3d_is_counted_against_it(tmp_path):
    layouts.co3dv2(tmp_path, scene(), repeat=9)
    (tmp_path / "frames.json").write_text('{"110_13051_23361": [3, 54], "elsewhere": [1, 2]}')
    data = load_dataset("co3dv2", Options(root=tmp_path, frames=tmp_path / "frames.json"))
    with pytest.raises(errors.SceneError, match="goes to number 54, and the copy has 54 frames"):
        data[0]
    with pytest.raises(errors.SceneError, match="no CATEGORY_test.jgz in .* holds it, with 50 frames"):
        data[1]
    assert data.scenes == ("apple/110_13051_23361", "elsewhere")


def test_co3d_counts_and_filters_as_the_scripts_do(tmp_path):
    true = scene()
    layouts.co3dv2(tmp_path, true, "apple", ("b", "a"), repeat=9)
    layouts.co3dv2(tmp_path, true, "ball", ("c",), repeat=10)
    layouts.co3dv2(tmp_path, true, "bowl", ("short",), repeat=8)
    data = load_dataset("co3dv2", Options(root=tmp_path))
    assert data.scenes == ("apple/b", "apple/a", "ball/c"), "seen ones first, in the file's order"
    assert {"b": data.frames["apple/b"], "a": data.frames["apple/a"], "c": data.frames["ball/c"]} == drawn(
        {"b": 54, "a": 54, "c": 60}, 10
    )
    official = load_dataset("co3dv2", Options(root=tmp_path, protocol="vggt-co3d"))
    assert official.scenes == ("apple/a", "apple/b")
    expected = np.random.RandomState(0).choice(54, 10, replace=False).tolist()
    assert official.frames["apple/a"] == expected
    assert rules_for(official, "vggt-co3d").describe()["mean_over"] == "categories"
    with pytest.raises(errors.InputError, match="views must be at most 50"):
        load_dataset("co3dv2", Options(root=tmp_path, views=51))
    (tmp_path / "apple_test.jgz").write_bytes(b"no gzip")
    with pytest.raises(errors.InputError, match="apple_test.jgz is damaged"):
        load_dataset("co3dv2", Options(root=tmp_path))


# ---- what is wrong with a copy


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "co3dv2"])
def test_a_root_without_the_data_set_says_what_would_be_right(name, tmp_path):
    with pytest.raises(errors.MissingError, match="holds no") as error:
        load_dataset(name, Options(root=tmp_path))
    assert error.value.argument == "root"
    with pytest.raises(errors.InputError, match=f"root must be given for the data set {name}"):
        load_dataset(name)


def test_at_most_ten_missing_files_are_named(tmp_path):
    with pytest.raises(errors.MissingError, match=r"apple_test.jgz, .*broccoli_test.jgz and 41 more"):
        load_dataset("co3dv2", Options(root=tmp_path))
    _, data = written("eth3d", tmp_path)
    for path in (tmp_path / "courtyard/custom_undistorted_cam").iterdir():
        path.unlink()
    with pytest.raises(errors.SceneError, match="DSC_0000.npz, .*DSC_0005.npz are missing"):
        data[0]


def spoil_pose(path):
    path.write_text(path.read_text().replace(path.read_text().split()[3], "nan", 1))


@pytest.mark.parametrize(
    "name, spoil, sentence",
    [
        (
            "7scenes",
            lambda root: spoil_pose(root / "chess/seq-03/frame-000002.pose.txt"),
            "view 2 is not finite",
        ),
        (
            "7scenes",
            lambda root: (root / "chess/seq-03/frame-000002.pose.txt").write_text("1 2"),
            "4 x 4 numbers",
        ),
        ("7scenes", lambda root: (root / "chess/seq-03/frame-000001.depth.proj.png").unlink(), "is missing"),
        ("nrgbd", lambda root: spoil_pose(root / "breakfast_room/poses.txt"), "view 0 is not finite"),
        (
            "nrgbd",
            lambda root: (root / "breakfast_room/depth/depth3.png").unlink(),
            "6 images, 5 depth images and 6 cam",
        ),
        (
            "eth3d",
            lambda root: (root / "courtyard/custom_undistorted_cam/DSC_0001.npz").write_bytes(b"x"),
            "must hold",
        ),
        (
            "dtu",
            lambda root: (root / "scan1/cams/00000001_cam.txt").write_text("extrinsic"),
            "no camera file",
        ),
        ("scannet", lambda root: spoil_pose(root / "scene0707_00/pose_6.txt"), "view 0 is not finite"),
        ("tum", lambda root: spoil_pose(root / layouts.TUM / "groundtruth_6.txt"), "view 0 is not finite"),
        (
            "sintel",
            lambda root: next((root / "training/camdata_left/alley_2").iterdir()).write_bytes(b"HEIP"),
            "tag",
        ),
        ("tanksandtemples", lambda root: (root / "Barn/000003.png").unlink(), "6 cameras, and the folder 5"),
        ("realestate10k", lambda root: next(root.rglob("0003.png")).unlink(), "5 frames, and cameras of 6"),
        (
            "realestate10k",
            lambda root: next(root.rglob("annotations.json")).write_text("[1]"),
            "list of objects",
        ),
        ("nerfstudio", lambda root: (root / "mine/images/003.png").unlink(), "003.png is missing"),
        ("idr", lambda root: (root / "mine/image/000001.png").unlink(), "5 photographs and 6 cameras"),
        (
            "colmap",
            lambda root: (root / "mine/images/view001.png").unlink(),
            "lacks 1 of the model's photographs: view001.png",
        ),
        ("kitti", lambda root: next(root.rglob("groundtruth*/*/0000000002.png")).unlink(), "is missing"),
    ],
)
def test_a_scene_that_is_wrong_is_one_sentence(name, spoil, sentence, tmp_path):
    written(name, tmp_path)
    spoil(tmp_path)
    views = {"views": 5} if name == "realestate10k" else LAYOUTS[name][1]
    with pytest.raises(errors.SceneError, match=sentence) as error:
        load_dataset(name, Options(root=tmp_path, **views))[0]
    assert error.value.scene


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


def spoil_middle(path):
    """Of a compressed archive, whose directory stays whole."""
    with path.open("wb") as file:
        np.savez_compressed(file, intrinsics=np.eye(3), extrinsics=np.eye(4), world_mat_0=np.eye(4))
    data = bytearray(path.read_bytes())
    for start in [i for i in range(len(data)) if data[i : i + 4] == b"PK\3\4"]:
        data[start + 60 : start + 75] = b"\xff" * 15
    path.write_bytes(data)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        cut,
        spoil_middle,
        lambda path: np.save(path.open("wb"), np.float64(1)),
        lambda path: np.save(path.open("wb"), np.array(["a"])),
    ],
    ids=["empty", "cut", "spoilt", "a number", "words"],
)
@pytest.mark.parametrize(
    "name, file",
    [
        ("eth3d", "courtyard/custom_undistorted_cam/DSC_0001.npz"),
        ("idr", "mine/cameras_sphere.npz"),
        ("dtu", "scan1/depths/00000001.npy"),
    ],
)
def test_a_damaged_file_of_arrays_is_one_sentence(name, file, spoil, tmp_path):
    _, data = written(name, tmp_path, 2)
    spoil(tmp_path / file)
    with pytest.raises(errors.SceneError, match=file):
        list(data[0].truth.depth)


@pytest.mark.parametrize("name", ["eth3d", "bonn", "sintel"])
def test_a_scene_without_depth_is_left_out(name, tmp_path):
    true, data = written(name, tmp_path)
    write, options = LAYOUTS[name]
    write(tmp_path / "empty", true._replace(depth=0 * true.depth))
    data = load_dataset(name, Options(root=tmp_path / "empty", **options))
    sample, rules = data[0], rules_for(data)
    transforms = load_images(sample.images, rules.policy(ImagePolicy())).transforms
    with pytest.raises(errors.SceneError, match="pixel has a known depth"):
        Reference(sample, transforms, rules.wanted, rules.field, rules.order)


def test_one_view_is_a_cloud_but_no_pair(tmp_path):
    """thin_geometry has one view at stride 500, which the protocol measures."""
    layouts.nrgbd(tmp_path, scene(1, nrgbd.K))
    assert len(load_dataset("nrgbd", Options(root=tmp_path))[0].images) == 1
    layouts.seven_scenes(tmp_path / "7", scene(1))
    with pytest.raises(errors.SceneError, match="of its 1 frames 1 are taken, and 2 are needed"):
        load_dataset("7scenes", Options(root=tmp_path / "7"))[0]


@pytest.mark.parametrize("gone", ["color/3.jpg", "pose/3.txt"])
def test_scannets_colours_and_cameras_are_of_the_same_frames(gone, tmp_path):
    """The copy has a frame more than are taken, so that there are as many of one as of the other."""
    layouts.scannet(tmp_path, scene(3), prepared=False)
    (tmp_path / "scene0707_00" / gone).unlink()
    data = load_dataset("scannet", Options(root=tmp_path, views=2))
    with pytest.raises(errors.SceneError, match=r"color.[34].jpg and .*pose.[34].txt must be of the same"):
        data[0]


@pytest.mark.parametrize("name", ["colmap", "nerfstudio", "idr", "tanksandtemples"])
def test_fewer_than_two_views_are_refused(name, tmp_path):
    written(name, tmp_path, 2)
    for views in (1, 0, -1):
        with pytest.raises(errors.InputError, match=f"views must be at least 2, not {views}"):
            load_dataset(name, Options(root=tmp_path, views=views))


@pytest.mark.parametrize("name", ["colmap", "nerfstudio", "idr", "tanksandtemples", "co3dv2"])
def test_a_scene_of_one_view_is_left_out(name, tmp_path):
    if name == "co3dv2":
        layouts.co3dv2(tmp_path / "root", scene(1), repeat=50)
        (tmp_path / "one.json").write_text('{"110_13051_23361": [7]}')
        data = load_dataset(name, Options(root=tmp_path / "root", frames=tmp_path / "one.json"))
    else:
        data = written(name, tmp_path, 1)[1]
    with pytest.raises(errors.SceneError, match="it has 1 view, and 2 are compared"):
        data[0]


def test_the_border_of_a_mask_is_taken_off_as_opencv_does(tmp_path):
    cv2 = pytest.importorskip("cv2")
    layouts.dtu(tmp_path, in_millimetres(scene()))
    depth = load_dataset("dtu", Options(root=tmp_path, stride=1))[0].truth.depth[0]
    mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
    mask[:, :4] = 0
    kept = cv2.erode((mask / 255 > 0.5).astype(np.uint8), np.ones((10, 10), np.uint8))
    np.testing.assert_array_equal(depth > 0, (kept > 0) & (scene().depth[0] > 0))


# ---- true files


needs_layouts = pytest.mark.skipif(not LAYOUT.is_dir(), reason="true files are not in the project")


@needs_layouts
def test_true_files_of_7_scenes(tmp_path, monkeypatch):
    monkeypatch.undo()  # they are of the released size
    folder = tmp_path / "redkitchen" / "seq-03"
    folder.parent.mkdir()
    folder.symlink_to(LAYOUT / "7scenes_redkitchen")
    data = load_dataset("7scenes", Options(root=tmp_path, stride=1))
    sample = data[[name for name in data.scenes].index("redkitchen/seq-03")]
    depth = np.stack(list(sample.truth.depth))
    assert depth.shape == (3, 480, 640) and 1 < np.median(depth[depth > 0]) < 4 and depth.max() <= 10
    assert load_images(sample.images, ImagePolicy("wide", 518, 14)).pixels.shape == (3, 392, 518, 3)
    assert np.linalg.norm(np.diff(sample.truth.cam_from_world[:, :, 3], axis=0), axis=1).max() < 0.05


@needs_layouts
def test_true_files_of_tanks_and_temples():
    root = LAYOUT / "tanksandtemples_barn"
    poses = tanksandtemples.read_log(root / "Barn_COLMAP_SfM.log", "Barn")
    assert poses.shape == (410, 4, 4)
    np.testing.assert_allclose(poses[0, :3, 3], [3.247106620677, 0.140327149378, 0.557238856010])
    data = load_dataset("tanksandtemples", Options(root=root))
    assert data.scenes == ("Barn",)
    with pytest.raises(errors.SceneError, match="410 cameras, and the folder 1 photographs"):
        data[0]


@needs_layouts
def test_true_files_of_the_others():
    root = LAYOUT / "realestate10k"
    path = next((root / "test").iterdir())
    poses = realestate10k.read_camera_file(path, path.stem)
    assert (
        len(poses) == 5 and np.abs(poses[:, :, :3] @ poses[:, :, :3].swapaxes(1, 2) - np.eye(3)).max() < 1e-5
    )
    poses = nrgbd.read_poses(LAYOUT / "nrgbd_breakfast_room" / "poses.txt", "breakfast_room")
    assert (
        poses.shape == (3, 4, 4)
        and float((LAYOUT / "nrgbd_breakfast_room/focal.txt").read_text()) == nrgbd.FOCAL
    )
    K, poses = idr.read_cameras_npz(LAYOUT / "dtu_idr" / "scan24" / "cameras_sphere.npz", "scan24")
    assert len(K) == 49 and np.abs(K[:, 0, 1]).max() < 1 and 2000 < K[:, 0, 0].min() < K[:, 0, 0].max() < 4000
    assert (np.linalg.det(poses[:, :, :3]) > 0.999).all()
    with pytest.raises(errors.SceneError, match="1 photographs and 49 cameras"):
        load_dataset("idr", Options(root=LAYOUT / "dtu_idr"))[0]


@needs_layouts
def test_true_folders_of_co3d(tmp_path):
    """Its photographs, with annotations that are made up: none was to be had."""
    frames = []
    for i, path in enumerate(sorted((LAYOUT / "co3d/plant/374_41993_84073/images").iterdir()) * 17):
        file = path.relative_to(LAYOUT / "co3d").as_posix()
        frames.append({"filepath": file, "R": np.eye(3).tolist(), "T": [i, 0, 1]})
    import gzip

    (tmp_path / "plant_test.jgz").write_bytes(gzip.compress(json.dumps({"374_41993_84073": frames}).encode()))
    (tmp_path / "plant").symlink_to(LAYOUT / "co3d" / "plant")
    sample = load_dataset("co3dv2", Options(root=tmp_path))[0]
    assert sample.name == "plant/374_41993_84073" and len(sample.images) == 10
    assert all(frame.path.is_file() for frame in sample.images)


@pytest.mark.skipif(not (SHARED / "real").is_dir(), reason="the photographs are not in the project")
def test_a_true_colmap_text_model(tmp_path):
    source = SHARED / "real" / "lund-door"
    for name in ("cameras.txt", "images.txt"):
        (tmp_path / name).symlink_to(source / "colmap_ground_truth" / name)
    (tmp_path / "images").mkdir()
    for path in (source / "images").iterdir():
        (tmp_path / "images" / f"{path.stem}.JPG").symlink_to(path)
    from fastvggt_jax.evaluate.metrics import pair_errors

    truth = load_dataset("colmap", Options(root=tmp_path))[0].truth
    same = load_dataset("real", Options(root=source, views=12))[0].truth
    assert max(errors_.max() for errors_ in pair_errors(truth.cam_from_world, same.cam_from_world)) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", ["realestate10k", "sintel", "tum"])
def test_rendered_scenes_the_whole_way(name, tmp_path):
    """A scene of our renderer in the layout, and the truth of its photographs as what a model says."""
    count = 10
    rendered = Rendered(scenes=1, first=3, views=count, size=56)[0]
    images, truth = rendered.images, rendered.truth
    depth = np.where(truth.valid, truth.depth, 0).astype(np.float32)
    K, poses = np.asarray(truth.K[0], np.float64), np.asarray(truth.cam_from_world, np.float64)
    true = layouts.True_(images, K, poses, depth)
    write, options = LAYOUTS[name]
    write(tmp_path, true)
    options = options | ({"views": 10} if "views" in options else {})
    data = load_dataset(name, Options(root=tmp_path, scenes=1, **options))
    numbers = list(data.frames.get(data.scenes[0]) or range(count))
    pi3 = ImagePolicy("crop", 518, 14)

    def predict(pixels):
        height, width = pixels.shape[2:4]
        side = true.images.shape[1:3]
        y, x = np.mgrid[: side[0], : side[1]] + 0.5
        rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(true.K).T
        c2w, z = true.world_from_cam[numbers], true.depth[numbers]
        points = np.einsum("fij,fhwj->fhwi", c2w[:, :3, :3], rays * z[..., None]) + c2w[:, None, None, :3, 3]
        rows, columns = (np.arange(n) * m // n for n, m in zip((height, width), side, strict=True))
        at = (slice(None), slice(None), rows[:, None], columns)
        poses = true.poses[numbers][None].astype(np.float32)
        z, points = z[None][at], points.astype(np.float32)[None][at]
        return Reconstruction(poses, None, z, z, points, z), None

    result = evaluate({"truth": predict}, pi3, data)["truth"]
    rules = rules_for(data)
    summary = result.summary(rules.mean_over)
    assert result.scenes == [data.scenes[0]]
    for group in rules.wanted:
        for metric, value in BEST[group].items():
            if group == "video depth":  # of fewer pixels, which are not quite the same
                assert abs(summary[metric] - value) < (5 if metric.startswith("delta") else 0.05), metric
            else:
                assert summary[metric] == pytest.approx(value, abs=2e-3 if value == 0 else 0.01), metric
