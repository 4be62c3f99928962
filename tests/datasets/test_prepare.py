"""Released files made ready: ETH3D's fisheye photographs and depth become a pinhole camera's; CO3D's
annotations.
"""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fastvggt_jax.cli.app import app
from fastvggt_jax.datasets.base import Options, load_dataset
from fastvggt_jax.datasets.eth3d_prepare import undistorted, undistorted_depth
from tests.datasets import layouts

H, W = 60, 80
K = np.array([[50, 0, 41.0], [0, 52, 29], [0, 0, 1]])
LENS = np.array([-0.02, 0.015, -0.01, 0.002])
SLOPE = np.array([0.3, -0.2])  # z = 4 / (1 - x' · SLOPE) of a ray (x', 1): a plane


def plane(x, y):
    return 4 / (1 - SLOPE[0] * x - SLOPE[1] * y)


def through(lens):
    """x and y of the ray through each pixel [H, W] of a fisheye, whose angles are found by bisection."""
    v, u = np.mgrid[:H, :W]
    x, y = (u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1]
    radius = np.hypot(x, y)
    low, high = np.zeros((H, W)), np.full((H, W), 1.3)
    for _ in range(60):
        a = (low + high) / 2
        less = a * (1 + lens[0] * a**2 + lens[1] * a**4 + lens[2] * a**6 + lens[3] * a**8) < radius
        low, high = np.where(less, a, low), np.where(less, high, a)
    scale = np.tan(low) / np.maximum(radius, 1e-12)
    return x * scale, y * scale


def pinhole():
    v, u = np.mgrid[:H, :W]
    return (u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1]


def colours(x, y):
    return np.clip(np.stack([120 + 70 * x, 120 + 80 * y, 0 * x + 50], -1), 0, 255)


def write(root, scene="courtyard", names=("DSC_1.JPG", "DSC_2.JPG")):
    x, y = through(LENS)
    lens = [LENS[0], LENS[1], 0.001, 0.002, LENS[2], LENS[3], 0.003, 0.004]
    parameters = " ".join(map(str, [K[0, 0], K[1, 1], K[0, 2], K[1, 2], *lens]))
    folder = root / scene
    layouts.text(
        folder / "dslr_calibration_jpg/cameras.txt", f"# one\n0 THIN_PRISM_FISHEYE {W} {H} {parameters}\n"
    )
    rows = [f"{i} 0.5 0.5 -0.5 0.5 1 2 {i} 0 dslr_images/{name}\n1 2 -1\n" for i, name in enumerate(names)]
    layouts.text(folder / "dslr_calibration_jpg/images.txt", "# two lines each\n" + "".join(rows))
    for name in names:
        layouts.save(colours(x, y).astype(np.uint8), folder / "images/dslr_images" / name, "PNG")
        depth = folder / "ground_truth_depth/dslr_images" / name
        depth.parent.mkdir(parents=True, exist_ok=True)
        raw = plane(x, y).astype("<f4")
        raw[:3] = np.inf
        raw.tofile(depth)


def test_a_planes_photograph_and_depth_without_the_lens():
    x, y = through(LENS)
    flat = undistorted_depth(plane(x, y).astype(np.float32), K, LENS)
    known = flat > 0
    assert known.mean() > 0.6 and not known.all()
    # The depth stays what it was half a pixel away, at most.
    assert np.abs(flat - plane(*pinhole()))[known].max() < 0.06
    pixels = undistorted(colours(x, y).astype(np.uint8), K, LENS)
    error = np.abs(pixels.astype(float) - colours(*pinhole()))[4:-4, 4:-4]
    assert error.max() < 2
    assert np.abs(colours(x, y) - colours(*pinhole())).max() > 10, "the lens matters here"


def test_opencvs_fisheye_says_the_same():
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    pixels = np.asarray(Image.fromarray(rng.integers(0, 256, (8, 10, 3), np.uint8)).resize((W, H)))
    maps = cv2.fisheye.initUndistortRectifyMap(K, LENS, np.eye(3), K, (W, H), cv2.CV_32FC1)
    expected = cv2.remap(pixels, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    inside = np.abs(undistorted(pixels, K, LENS).astype(int) - expected)[2:-2, 2:-2]
    assert inside.max() <= 3, "OpenCV interpolates in steps of 1/32 of a pixel"
    depth = np.where(rng.random((H, W)) < 0.1, rng.uniform(1, 9, (H, W)), 0).astype(np.float32)
    v, u = np.nonzero(depth)
    points = cv2.fisheye.undistortPoints(
        np.stack([u, v], -1)[None].astype(np.float64), K, LENS, None, None, K
    )[0]
    flat = np.zeros_like(depth)
    for (px, py), d in zip(np.rint(points).astype(int), depth[v, u], strict=True):
        if 0 <= px < W and 0 <= py < H:
            flat[py, px] = d  # the last one wins
    np.testing.assert_array_equal(undistorted_depth(depth, K, LENS), flat)


def test_the_command_makes_what_the_data_set_reads(tmp_path):
    write(tmp_path / "raw")
    asked = ["data", "prepare", "eth3d", "--root", str(tmp_path / "raw"), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0 and done.stdout == "courtyard: 2 photographs\n", (done.output, done.exception)
    sample = load_dataset("eth3d", Options(root=tmp_path / "out", stride=1))[0]
    assert [frame.path.name for frame in sample.images] == ["DSC_1.JPG", "DSC_2.JPG"]
    depth = sample.truth.depth[0]
    assert np.abs(depth - plane(*pinhole()))[depth > 0].max() < 0.06 and (depth > 0).mean() > 0.5
    np.testing.assert_allclose(sample.truth.K[0], K + [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    np.testing.assert_allclose(sample.truth.cam_from_world[1, :, 3], [1, 2, 1])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}
    gone = next((tmp_path / "out").rglob("DSC_2.npz"))
    gone.unlink()
    assert CliRunner().invoke(app, asked).exit_code == 0 and gone.is_file()
    same = [path for path, at in before.items() if path.stat().st_mtime_ns == at and path.is_file()]
    assert {path.stem for path in same} == {"DSC_1"}, "only what was missing was made again"


def test_a_damaged_photograph_does_not_end_the_other_scenes(tmp_path):
    write(tmp_path / "raw")
    write(tmp_path / "raw", "relief")
    (tmp_path / "raw/courtyard/images/dslr_images/DSC_1.JPG").write_bytes(b"damaged")
    asked = ["data", "prepare", "eth3d", "--root", str(tmp_path / "raw"), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 1 and done.stdout == "relief: 2 photographs\n", (done.output, done.exception)
    assert "courtyard: " in done.stderr and "DSC_1.JPG" in done.stderr


@pytest.mark.parametrize(
    "arguments, sentence, code",
    [
        (["prepare", "7scenes"], "must be one of eth3d, co3dv2, not '7scenes'", 2),
        (["prepare", "eth3d"], "--root, the released files, and -o", 2),
        (
            ["prepare", "eth3d", "--root", "ROOT", "-o", "OUT"],
            "holds none of the folders courtyard/dslr_cal",
            2,
        ),
        (
            ["prepare", "eth3d", "--root", "BAD", "-o", "OUT"],
            "1 scenes of eth3d could not be prepared: courtyard",
            1,
        ),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, arguments, sentence, code):
    (tmp_path / "ROOT").mkdir()
    write(tmp_path / "BAD")
    next((tmp_path / "BAD").rglob("cameras.txt")).write_text("0 PINHOLE 4 4 1 1 2 2\n")
    places = {name: str(tmp_path / name) for name in ("ROOT", "OUT", "BAD")}
    done = CliRunner().invoke(app, ["data", *(places.get(a, a) for a in arguments)])
    assert done.exit_code == code and sentence in done.stderr and len(done.stderr.splitlines()) == 1, (
        done.output
    )


def test_all_data_sets_are_listed_and_described():
    done = CliRunner().invoke(app, ["data", "list"])
    listed = done.stdout.split()
    assert done.exit_code == 0 and {"synthetic", "real", "co3dv2", "7scenes"} <= set(listed)
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    assert not [name for name in listed if f"`{name}`" not in page and name not in ("synthetic", "stereo")]


def test_co3ds_released_annotations_become_one_file(tmp_path):
    """Frames in the order of the list of the test set, of sequences that are good enough."""
    folder = tmp_path / "raw" / "apple"
    viewpoint = lambda i: {
        "R": np.eye(3).tolist(),
        "T": [i, 0, 1],
        "focal_length": [2, 2],
        "principal_point": [0, 0],
    }
    frames = [
        {"sequence_name": name, "frame_number": i, "viewpoint": viewpoint(i)}
        for name in ("good", "bad")
        for i in range(60)
    ]
    sequences = [
        {"sequence_name": "good", "viewpoint_quality_score": 0.9},
        {"sequence_name": "bad", "viewpoint_quality_score": 0.5},
    ]
    file = lambda name, i: f"apple/{name}/images/frame{i:06}.jpg"
    test = [[name, i, file(name, i)] for i in reversed(range(55)) for name in ("good", "bad")]
    layouts.text(folder / "set_lists/set_lists_fewview_dev.json", json.dumps({"train": [], "test": test}))
    for name, content in (("frame", frames), ("sequence", sequences)):
        (folder / f"{name}_annotations.jgz").write_bytes(gzip.compress(json.dumps(content).encode()))
    asked = ["data", "prepare", "co3dv2", "--root", str(tmp_path / "raw"), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0 and done.stdout == "apple: 1 sequences\n", (done.output, done.exception)
    data = load_dataset("co3dv2", Options(root=tmp_path / "out"))
    assert data.scenes == ("apple/good",)
    assert [e["T"][0] for e in data.entries["apple/good"]] == [54 - n for n in data.frames["apple/good"]]
    (tmp_path / "out/apple_test.jgz").unlink()
    (folder / "frame_annotations.jgz").write_bytes(b"no gzip")
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 1 and "1 scenes of co3dv2 could not be prepared: apple" in done.stderr
