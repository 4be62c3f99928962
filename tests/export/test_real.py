"""The bundled model's scenes of photographs: COLMAP models that pycolmap reads, with tracks that hold.

The real ones lie outside the project (SOURCE.md there says under which terms); without them, the bundled one.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from fastvggt_jax import export, from_pretrained, load_images, to_scene
from fastvggt_jax.evaluate import metrics
from fastvggt_jax.export.base import check_formats, write_formats
from fastvggt_jax.pretrained import BUNDLED
from fastvggt_jax.refine.bundle import bundle_adjust
from fastvggt_jax.refine.matching import measure_tracks
from tests.export.colmap_reader import read_colmap

pytestmark = pytest.mark.slow
REAL = Path(__file__).parents[3] / "shared" / "real"
VIEWS = 8


@pytest.fixture(scope="module")
def reconstructed():
    model, params = from_pretrained("mini", heads=("camera", "depth"))
    apply = jax.jit(model.clone(dtype="float32").apply)

    def of(name):
        folder = BUNDLED["mini"].path.parent / "views" if name == "demo" else REAL / name / "images"
        if not folder.is_dir():
            pytest.skip(f"{folder} is not here")
        photos = sorted(folder.iterdir())[:VIEWS]
        images = load_images(photos, model.image_policy, mode="square")  # one size: compiled once
        return to_scene(apply(params, images.pixels[None]), images)

    return of


def test_bundle_adjustment_of_the_bundled_photographs(reconstructed):
    pytest.importorskip("pycolmap")
    scene = reconstructed("demo")
    found, _, done = bundle_adjust(scene, conf_percentile=25)
    assert done.after < 0.5 < 1.0 < done.before and len(done.moved) == VIEWS and done.zoomed
    golden = Path(__file__).parents[1] / "golden" / "demo_cameras.json"
    true = np.linalg.inv(json.loads(golden.read_text()))[:, :3]
    before, after = (
        np.median(metrics.pair_errors(s.cam_from_world.astype(float), true), axis=1) for s in (scene, found)
    )
    assert (after < before / 5).all() and (after < 0.6).all()


def test_pycolmap_lowers_the_error_of_what_it_is_given(reconstructed, tmp_path):
    """Of measured tracks beside the model's own cameras; those of before an adjustment of ours."""
    pycolmap = pytest.importorskip("pycolmap")
    scene = reconstructed("demo")
    tracks = measure_tracks(scene, conf_percentile=25)
    made = export.Export.of(scene, export.ExportOptions(), measured=tracks)
    write_formats(made, tmp_path, check_formats("colmap"))
    model = pycolmap.Reconstruction(tmp_path / "sparse" / "0")
    model.update_point_3d_errors()
    before = model.compute_mean_reprojection_error()
    pycolmap.bundle_adjustment(model, pycolmap.BundleAdjustmentOptions(print_summary=False))
    model.update_point_3d_errors()
    assert before > 1 and model.compute_mean_reprojection_error() < before / 2


@pytest.mark.parametrize("name", ["demo", "fox", "fern"])
def test_measured_tracks_of_photographs(reconstructed, name, tmp_path):
    """What bundle adjustment goes by reaches COLMAP: seen by the adjusted cameras within a pixel."""
    pycolmap = pytest.importorskip("pycolmap")
    found, tracks, done = bundle_adjust(reconstructed(name), conf_percentile=25)
    made = export.Export.of(found, export.ExportOptions(), measured=tracks)
    write_formats(made, tmp_path, check_formats("colmap"))
    read = pycolmap.Reconstruction(tmp_path / "sparse" / "0")
    away = []
    for image in read.images.values():
        for point in image.get_observation_points2D():
            seen = image.project_point(read.points3D[point.point3D_id].xyz)
            away.append(np.linalg.norm(seen - point.xy))
    assert len(away) == done.observations and 1e-3 < np.median(away) < 1
    # On real photographs the bundled model's cameras are that far off that few are found in a third one.
    assert read.compute_mean_track_length() > 2.3 and done.after < done.before


@pytest.mark.parametrize("name", ["demo", "fox", "fern", "castle-p30"])
def test_tracks_of_photographs(reconstructed, name, tmp_path):
    scene = reconstructed(name)
    options = export.ExportOptions(conf_percentile=25, track_points=20_000)
    export.write(scene, tmp_path, ("colmap", "cameras"), options)
    model = read_colmap(tmp_path / "sparse" / "0")
    cameras = json.loads((tmp_path / "cameras.json").read_text())["images"]
    off, points = [], {number: point.xyz for number, point in model.points.items()}
    for image, camera in zip(model.images.values(), cameras, strict=True):
        xyz = np.array([points[number] for number in image.points])
        cam = xyz @ np.linalg.inv(camera["world_from_cam"])[:3, :3].T
        cam += np.linalg.inv(camera["world_from_cam"])[:3, 3]
        seen = cam @ np.array(camera["K"]).T
        off.append(np.linalg.norm(seen[:, :2] / seen[:, 2:] - image.xy, axis=-1))
        assert ((image.xy >= 0) & (image.xy <= (camera["width"], camera["height"]))).all()
    assert (
        np.median(np.concatenate(off)) < 0.1 and np.mean([len(p.track) for p in model.points.values()]) > 2.5
    )
    assert len(points) == 20_000
    pycolmap = pytest.importorskip("pycolmap")
    read = pycolmap.Reconstruction(tmp_path / "sparse" / "0")
    read.update_point_3d_errors()
    assert read.compute_mean_reprojection_error() < 0.1 and read.compute_mean_track_length() > 2.5
