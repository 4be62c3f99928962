"""`fastvggt track`: chosen points, in the photographs' own pixels, followed and drawn."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fastvggt_jax import load_images
from fastvggt_jax.cli.app import app
from fastvggt_jax.seeing.tracks import Followed, Points, as_video, drawn, parse_points
from fastvggt_jax.sources import ImagePolicy
from tests.seeing.test_report import refused


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    pixels = np.random.default_rng(0).integers(0, 255, (2, 112, 112, 3), np.uint8)
    for i, one in enumerate(pixels):
        Image.fromarray(one).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def images(photos):
    return load_images(str(photos), ImagePolicy("crop", 56, 14))


def run(*arguments):
    return CliRunner().invoke(app, ["track", *map(str, arguments)])


def test_points_are_of_the_photographs_pixels(images, tmp_path):
    path = tmp_path / "points.json"
    path.write_text('[{"frame": "1.png", "x": 110, "y": 57}, {"frame": 0, "x": 1, "y": 3.0}]')
    points = parse_points(str(path), images)
    assert points.frame.tolist() == [1, 0]
    np.testing.assert_allclose(points.xy, [(55, 28.5), (0.5, 1.5)])  # half as large in the model
    grid = parse_points("grid:2", images)
    assert grid.xy.tolist() == [[14, 14], [42, 14], [14, 42], [42, 42]] and not grid.frame.any()


def test_every_frame_gets_as_many_points():
    points = Points(np.array([3, 1, 3, 3]), np.arange(8.0).reshape(4, 2) + 0.5)
    frames, xy, where = points.batched()
    assert frames == (1, 3) and xy.shape == (1, 6, 2)
    np.testing.assert_allclose(xy[0, where], points.xy - 0.5)
    assert (where // 3 == np.array([1, 0, 1, 1])).all()


def test_points_are_full_where_they_are_seen():
    xy = np.array([[[10.0, 10.0], [30.0, 30.0]], [[20.0, 10.0], [30.0, 30.0]]])
    visible = np.array([[1.0, 0.1], [1.0, 0.1]])
    followed = Followed(xy, visible, visible)
    points = Points(np.zeros(2, int), xy[0])
    pixels = np.full((56, 56, 3), 128, np.uint8)
    picture = drawn(pixels, points, followed, 1)
    scale = picture.width // 56
    assert picture.getpixel((20 * scale, 10 * scale)) == (255, 38, 38)
    assert picture.getpixel((15 * scale, 10 * scale)) == (255, 38, 38)  # its way
    assert picture.getpixel((30 * scale + 2, 30 * scale + 1)) == (128, 128, 128)  # hollow
    assert drawn(pixels, points, followed, 0).getpixel((15 * scale, 10 * scale)) == (128, 128, 128)
    av = pytest.importorskip("av")
    with av.open(io.BytesIO(as_video([picture] * 3))) as container:
        decoded = [frame.to_image() for frame in container.decode(video=0)]
    assert len(decoded) == 3 and np.abs(np.asarray(decoded[1], int) - np.asarray(picture)).mean() < 5


@pytest.mark.slow  # a run of the model; the parts are above
def test_photographs_to_tracks(photos, tracker_weights, tmp_path):
    out = tmp_path / "out"
    result = run(photos, "-c", tracker_weights, "--queries", "grid:3", "--size", 56, "-o", out)
    assert result.exit_code == 0, result.output
    content = json.loads((out / "tracks.json").read_text())
    tracks = np.array([one["tracks"] for one in content["photographs"]])
    assert tracks.shape == (2, 9, 4) and ((tracks[..., 2:] >= 0) & (tracks[..., 2:] <= 1)).all()
    # In their own frame points stay where they are.
    expected = [(112 * (2 * i + 1) / 6, 112 * (2 * j + 1) / 6) for j in range(3) for i in range(3)]
    np.testing.assert_allclose(tracks[0, :, :2], expected, atol=1e-2)
    assert sorted(path.name for path in (out / "frames").iterdir()) == ["0.png.jpg", "1.png.jpg"]
    assert (out / "tracks.mp4").stat().st_size > 1000


def test_wrong_queries_are_said_in_a_sentence(photos, images, tracker_weights, tmp_path):
    rest = ("-c", tracker_weights, "--size", 56, "-o", tmp_path / "out")
    for text in ("grid:0", ""):
        refused(run(photos, *rest, "--queries", text), "--queries must be a file, or grid:N", repr(text))
    refused(run(photos, *rest, "--queries", tmp_path / "no.json"), "no.json", "no such file")
    path = tmp_path / "points.json"
    for text, words in (
        ("{}", "list of 1 to"),
        ('[{"frame": 2, "x": 1, "y": 1}]', "frame of point 0"),
        ('[{"frame": true, "x": 1, "y": 1}]', "frame of point 0"),
        ('[{"frame": 0, "x": 1, "y": 1}, {"frame": 0, "x": 113, "y": 1}]', "point 1 must lie within"),
        ('[{"frame": 0, "x": "1", "y": 1}]', "point 0 must lie within"),
        ("[1]", "frame of point 0"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            parse_points(str(path), images)
    other = ("-c", "mini", "--queries", "grid:2", "-o", tmp_path / "out")
    refused(run(photos, *other), "--weights", "no track head")
    assert not (tmp_path / "out").exists()
