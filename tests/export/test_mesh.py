"""Surfaces in scene.glb: they lie where the photographs' depth is, are cut where it jumps, and wear what is
seen there.
"""

import dataclasses
import io
import json
import struct

import numpy as np
import pytest
from PIL import Image

from fastvggt_jax import errors, export
from fastvggt_jax.cli.app import app
from fastvggt_jax.export import ExportOptions, base
from fastvggt_jax.export import mesh as meshes
from fastvggt_jax.export.mesh import _triangles, surfaces
from tests.export.truth import VIEWS, _colors, true_scene

pytest.importorskip("fast_simplification")
GL_FROM_CV = (1, -1, -1)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return true_scene(tmp_path_factory.mktemp("photos"), "pad", 112).scene


def glb_primitives(path):
    """{node: (xyz, faces, uv, picture)} of the surfaces of a GLB, by glTF 2.0's specification alone."""
    data = path.read_bytes()
    length, kind = struct.unpack("<I4s", data[12:20])
    assert data[:4] == b"glTF" and kind == b"JSON"
    content, body = json.loads(data[20 : 20 + length]), data[28 + length :]

    def view(number):
        one = content["bufferViews"][number]
        return body[one.get("byteOffset", 0) :][: one["byteLength"]]

    def array(number):
        one = content["accessors"][number]
        dtype = {5123: "<u2", 5125: "<u4", 5126: "<f4"}[one["componentType"]]
        width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3}[one["type"]]
        offset = one.get("byteOffset", 0)
        return np.frombuffer(view(one["bufferView"]), dtype, one["count"] * width, offset).reshape(-1, width)

    found = {}
    for node in content["nodes"]:
        if not node.get("name", "").startswith("mesh"):
            continue
        (primitive,) = content["meshes"][node["mesh"]]["primitives"]
        material = content["materials"][primitive["material"]]
        texture = content["textures"][material["pbrMetallicRoughness"]["baseColorTexture"]["index"]]
        image = content["images"][texture["source"]]
        assert material["doubleSided"] and image["mimeType"] == "image/jpeg"
        picture = np.asarray(Image.open(io.BytesIO(view(image["bufferView"]))).convert("RGB"))
        attributes = primitive["attributes"]
        uv = array(attributes["TEXCOORD_0"])
        found[node["name"]] = array(attributes["POSITION"]), array(primitive["indices"]), uv, picture
    return found


def test_the_truth_goes_through(scene, tmp_path):
    pytest.importorskip("trimesh")
    export.write(scene, tmp_path, ("glb",), ExportOptions(glb_mesh=True))
    found = glb_primitives(tmp_path / "scene.glb")
    assert list(found) == [f"mesh {i}" for i in range(VIEWS)]
    for i, (xyz, faces, uv, picture) in enumerate(found.values()):
        assert picture.shape == scene.colors[i].shape
        pixel = uv * picture.shape[1::-1] - 0.5  # glTF counts from the picture's upper left corner
        np.testing.assert_allclose(pixel, np.rint(pixel), atol=1e-3)  # none was moved: there are few enough
        u, v = np.rint(pixel).astype(int).T
        assert scene.valid[i, v, u].all()
        world = xyz * GL_FROM_CV
        np.testing.assert_allclose(world, scene.points[i, v, u], atol=1e-4)
        # The front, by the order of its corners, is what the camera sees.
        a, b, c = world[faces.reshape(-1, 3).T]
        to_camera = scene.world_from_cam[i, :3, 3] - a
        assert (np.einsum("ij,ij->i", np.cross(b - a, c - a), to_camera) > 0).mean() > 0.999
        # But for edges, what is shown is covered: two triangles for each of its pixels.
        assert 0.7 * scene.valid[i].sum() < len(faces.reshape(-1, 3)) / 2 < scene.valid[i].sum()


def test_few_triangles_lie_where_many_did_and_wear_the_same_colours(scene, tmp_path):
    pytest.importorskip("trimesh")
    export.write(scene, tmp_path, ("glb",), ExportOptions(glb_mesh=True, mesh_points=3000))
    found = glb_primitives(tmp_path / "scene.glb")
    assert 2000 < sum(len(xyz) for xyz, *_ in found.values()) < 4500  # of 40,000 pixels
    off = []
    for i, (xyz, faces, uv, picture) in enumerate(found.values()):
        assert len(faces) and (uv >= 0).all() and (uv <= 1).all()
        world = xyz * GL_FROM_CV
        pose, K = scene.cam_from_world[i], scene.K[i]
        seen = (world @ pose[:, :3].T + pose[:, 3]) @ K.T
        width, height = picture.shape[1::-1]
        away = np.abs(uv * (width, height) - seen[:, :2] / seen[:, 2:])
        assert np.quantile(away, 0.99) < 0.1, "vertices are painted where the camera sees them"
        u, v = np.clip((uv * (width, height)).astype(int), 0, (width - 1, height - 1)).T
        off.append(np.abs(picture[v, u].astype(int) - _colors(world)).mean(-1))
    assert np.median(np.concatenate(off)) < 12


def two_things(scene):
    """A scene of one photograph: a near square before a far wall, parallel to the picture."""
    height, width = scene.valid.shape[1:]
    depth = np.full((1, height, width), 4, np.float32)
    depth[:, 20:60, 30:80] = 2
    v, u = np.mgrid[:height, :width] + 0.5
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(scene.K[0]).T
    pose = np.eye(4)[None, :3].astype(np.float32)
    first = {name: getattr(scene, name)[:1] for name in ("names", "transforms", "colors", "K", "intrinsics")}
    ones = np.full_like(depth, 2)
    points = (rays * depth[0, ..., None])[None].astype(np.float32)
    return dataclasses.replace(
        scene,
        **first,
        cam_from_world=pose,
        depth=depth,
        points=points,
        points_conf=ones,
        depth_conf=ones,
        valid=np.ones_like(depth, bool),
        paths=(),
    )


@pytest.mark.parametrize("max_points", [10**6, 200])
def test_surfaces_are_cut_where_the_depth_jumps(scene, max_points):
    (cut,) = surfaces(two_things(scene), max_points)
    z = cut.xyz[cut.faces][..., 2]
    assert np.ptp(z, axis=1).max() < 1e-3 and {2, 4} == set(np.rint(z.ravel()))
    a, b, c = cut.pixel[cut.faces.T]
    areas = np.abs(np.cross(np.pad(b - a, ((0, 0), (0, 1))), np.pad(c - a, ((0, 0), (0, 1))))[:, 2]) / 2
    assert 0.85 < areas.sum() / np.prod(scene.valid.shape[1:]) <= 1  # all but the edges is covered
    (uncut,) = surfaces(two_things(scene), 10**6, edge_filter=3.0)
    assert np.ptp(uncut.xyz[uncut.faces][..., 2], axis=1).max() == 2


@pytest.mark.parametrize("step", [2, 4])
def test_a_coarser_grid_leaves_out_no_thin_thing(step):
    """A pole one pixel wide between corners: behind it nothing is spanned."""
    depth = np.full((33, 41), 4.0)
    depth[:, 19] = 2
    pixels = _triangles(depth, np.ones_like(depth, bool), 0.05, step)
    x = pixels % 41
    assert len(pixels) and (x % step == 0).all()
    assert not ((x.min(1) <= 19) & (x.max(1) >= 19)).any()
    shown = np.ones_like(depth, bool)
    shown[:, 19] = False
    masked = _triangles(np.full_like(depth, 4.0), shown, 0.05, step, shown)
    assert not ((masked % 41).min(1) <= 19)[(masked % 41).max(1) >= 20].any()
    everywhere = _triangles(np.full((33, 41), 4.0), np.ones((33, 41), bool), 0.05, step)
    assert len(everywhere) == 2 * (32 // step) * (40 // step)


def test_what_is_masked_unsure_or_no_depth_is_in_no_surface(scene):
    one = two_things(scene)
    height, width = one.valid.shape[1:]
    valid, conf, depth = one.valid.copy(), one.points_conf.copy(), one.depth.copy()
    valid[0, :10] = False
    conf[0, :, :10] = 1
    depth[0, -10:] = 0
    holes = dataclasses.replace(one, valid=valid, points_conf=conf, depth=depth)
    (all_of_it,), (sure,) = surfaces(holes, 10**6), surfaces(holes, 10**6, conf_percentile=50)
    assert all_of_it.pixel.min(0).tolist() == [0.5, 10.5]
    assert sure.pixel.min(0).tolist() == [10.5, 10.5]
    assert sure.pixel.max(0).tolist() == [width - 0.5, height - 10.5]


@pytest.mark.parametrize("corner", range(4))
def test_three_of_four_neighbours_make_a_triangle(corner):
    kept = np.ones((2, 2), bool)
    kept.flat[corner] = False
    (triangle,) = meshes._triangles(np.ones((2, 2)), kept, 0.1)
    assert set(triangle.tolist()) == {0, 1, 2, 3} - {corner}
    x, y = triangle % 2, triangle // 2
    area = (x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0])
    assert area < 0  # y is down: counted against the clock


def test_no_surface_is_a_warning_and_the_cameras_are_written(scene, tmp_path):
    trimesh = pytest.importorskip("trimesh")
    nothing = dataclasses.replace(scene, valid=np.zeros_like(scene.valid))
    with pytest.warns(UserWarning, match="no surface is left for scene.glb"):
        export.write(nothing, tmp_path, ("glb",), ExportOptions(glb_mesh=True))
    assert set(trimesh.load_scene(tmp_path / "scene.glb").geometry) == {"cameras"}


def test_bad_input(scene, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    scene.save(tmp_path)
    command = ["export", str(tmp_path), "--glb-mesh", "--overwrite", "--format"]
    result = CliRunner().invoke(app, [*command, "ply"])
    assert result.exit_code == 2 and "--glb-mesh is about scene.glb" in result.stderr
    with pytest.raises(errors.InputError, match="mesh_points must be a whole number"):
        ExportOptions(mesh_points=0)
    real = base.importlib.util.find_spec
    monkeypatch.setattr(
        meshes.importlib.util, "find_spec", lambda name: None if "simpl" in name else real(name)
    )
    with pytest.raises(errors.ExtraError, match="glb_mesh needs"):  # before any model would run
        ExportOptions(glb_mesh=True)
    result = CliRunner().invoke(app, [*command, "glb"])
    assert result.exit_code == 2
    assert "--glb-mesh needs fast_simplification: pip install 'fastvggt_jax[glb]'" in result.stderr
    assert not (tmp_path / "scene.glb").exists() and not (tmp_path / "points.ply").exists()
