"""Formats by name, a format of one's own, and a scene that is saved and comes back."""

import dataclasses
import errno
import io
import json
import zipfile

import numpy as np
import pytest

from fastvggt_jax import Scene, errors, export
from fastvggt_jax.export import ExportOptions, base, depth, tracks
from fastvggt_jax.sources import ImageTransform
from tests.toys.format import XYZ

F, H, W = 2, 8, 12


@pytest.fixture
def scene() -> Scene:
    rng = np.random.default_rng(0)
    t = ImageTransform(24, 16, W, H, 0.5, 0.5, 0.0, 0.0)
    maps = [rng.uniform(1, 2, (F, H, W)).astype(np.float32) for _ in range(3)]
    points = rng.normal(size=(F, H, W, 3)).astype(np.float32)
    points[0, 0, 0] = np.nan
    return Scene(
        names=("a\n\u2603\udcff.jpg", "b/c.png"),
        transforms=(t, dataclasses.replace(t, offset_x=0.1)),
        colors=rng.integers(0, 256, (F, H, W, 3), np.uint8),
        valid=np.isfinite(points).all(-1),
        K=np.tile(np.array([[10, 0, 6], [0, 10, 4], [0, 0, 1]], np.float32), (F, 1, 1)),
        cam_from_world=np.tile(np.eye(4, dtype=np.float32)[:3], (F, 1, 1)),
        points=points,
        points_conf=maps[0],
        depth=maps[1],
        depth_conf=maps[2],
        intrinsics=("predicted", "guessed"),
        conf_floor=1.1,
        metric_scale=0.5,
    )


@pytest.mark.parametrize("mapped", [False, True])
def test_a_saved_scene_comes_back_bit_for_bit(scene, tmp_path, mapped):
    scene = dataclasses.replace(scene, K=np.asfortranarray(scene.K))
    scene.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cameras.json", "scene.npz"]
    loaded = Scene.load(tmp_path, mapped=mapped)
    (tmp_path / "scene.npz").unlink()  # by which nothing is lost
    for field in dataclasses.fields(Scene):
        before, after = getattr(scene, field.name), getattr(loaded, field.name)
        if isinstance(before, np.ndarray):
            assert before.dtype == after.dtype
            np.testing.assert_array_equal(before, after)
            assert type(after) is np.ndarray and not (mapped and after.ctypes.data % 64)  # as fast as others
        else:
            assert before == after and type(before) is type(after), field.name


@pytest.mark.parametrize("mapped", [False, True])
def test_a_scene_that_another_program_has_compressed(scene, tmp_path, mapped):
    scene.save(tmp_path)
    with np.load(tmp_path / "scene.npz") as archive:
        arrays = dict(archive)
    np.savez_compressed(tmp_path / "scene.npz", **arrays)
    np.testing.assert_array_equal(Scene.load(tmp_path, mapped=mapped).points, scene.points)


def test_a_file_system_that_maps_no_files(scene, tmp_path, monkeypatch):
    def no_map(*_, **__):
        raise OSError(errno.ENODEV, "No such device")

    scene.save(tmp_path)
    monkeypatch.setattr("mmap.mmap", no_map)
    np.testing.assert_array_equal(Scene.load(tmp_path, mapped=True).points, scene.points)


@pytest.mark.parametrize("name", ["a\udcff.jpg", "a b.jpg", "a\nb.jpg"])
def test_why_a_name_is_another_one_in_colmaps_text_is_true(scene, tmp_path, name):
    scene = dataclasses.replace(scene, names=(name, "c.png"))
    with pytest.warns(UserWarning, match="hold no spaces, nor what cannot be printed: _ stands for them"):
        export.write(scene, tmp_path, ("colmap-text",), ExportOptions(track_points=10))


def test_what_is_no_scene_is_said(scene, tmp_path):
    with pytest.raises(errors.MissingError, match="scene.npz: no such file"):
        Scene.load(tmp_path)
    scene.save(tmp_path)
    whole = (tmp_path / "scene.npz").read_bytes()
    for damaged in (whole[:1000], b"PK nothing", b""):
        (tmp_path / "scene.npz").write_bytes(damaged)
        with pytest.raises(errors.InputError, match="damaged"):
            Scene.load(tmp_path)

    def changed(**arrays):
        with np.load(tmp_path / "whole.npz") as archive:
            np.savez(tmp_path / "scene.npz", **{**dict(archive), **arrays})

    (tmp_path / "whole.npz").write_bytes(whole)
    header = json.loads(str(np.load(tmp_path / "whole.npz")["header"]))
    changed(more=np.zeros(3))
    with pytest.raises(errors.InputError, match="not those of a scene"):
        Scene.load(tmp_path)
    changed(header=np.array(json.dumps(header | {"format_version": 2})))
    with pytest.raises(errors.InputError, match="format version 2, this fastvggt_jax reads up to 1"):
        Scene.load(tmp_path)


@pytest.mark.parametrize(
    "arrays, fields, what",
    [
        (dict(depth=np.zeros((F, H, 3), np.float32)), {}, r"depth is float32\[2, 8, 3\]"),
        (dict(depth=np.zeros((F, H, W), int)), {}, "depth is int64"),
        (dict(colors=np.zeros((F, H, W, 3), np.float32)), {}, "colors is float32"),
        (dict(K=np.zeros((F, 2, 3), np.float32)), {}, "K is"),
        (dict(cam_from_world=np.zeros((1, 3, 4), np.float32)), {}, "cam_from_world is"),
        (dict(valid=np.zeros(3, bool)), {}, ""),
        ({}, dict(names=["a"]), "names are not one str for each of 2"),
        ({}, dict(names=[1, 2]), "names are"),
        ({}, dict(names="ab"), "names are"),
        ({}, dict(intrinsics=["predicted"]), "intrinsics are"),
        ({}, dict(transforms=[{"x": 1}] * 2), "'original_width' is missing"),
        ({}, dict(conf_floor="x"), "conf_floor is 'x'"),
        ({}, dict(metric_scale=[1]), r"metric_scale is \[1\]"),
        ({}, dict(K=1), ""),
        (dict(K=np.full((F, 3, 3), np.nan, np.float32)), {}, "the K of photograph 0 is none"),
        (dict(K=np.zeros((F, 3, 3), np.float32)), {}, "the K of photograph 0 is none"),
        (dict(cam_from_world=np.zeros((F, 3, 4), np.float32)), {}, "the cam_from_world of photograph 0"),
        (
            dict(cam_from_world=np.full((F, 3, 4), np.inf, np.float32)),
            {},
            "the cam_from_world of photograph 0",
        ),
        (dict(cam_from_world=np.stack([-np.eye(3, 4, dtype=np.float32)] * F)), {}, "the cam_from_world of"),
        (dict(points=np.full((F, H, W, 3), np.nan, np.float32)), {}, "not finite are called valid"),
        (dict(points_conf=np.full((F, H, W), np.inf, np.float32)), {}, "not finite are called valid"),
        (dict(valid=np.zeros((0, H, W), bool)), {}, r"valid is bool\[0, "),
        (dict(valid=np.zeros((F, 0, W), bool)), {}, r"valid is bool\[2, 0, "),
        ({}, dict(metric_scale=float("nan")), "metric_scale is nan"),
        ({}, dict(metric_scale=float("inf")), "metric_scale is inf"),
        ({}, dict(metric_scale=-1), "metric_scale is -1"),
        ({}, dict(metric_scale=True), "metric_scale is True"),
        ({}, dict(conf_floor=float("nan")), "conf_floor is nan"),
        ({}, dict(conf_floor=10**400), "conf_floor is 1000"),
        ({}, dict(metric_scale=10**400), "metric_scale is 1000"),
        (dict(K=np.tile(np.array([[5, 0, 6], [1, 5, 4], [0, 0, 1]], np.float32), (F, 1, 1))), {}, "the K of"),
        (dict(K=np.tile(np.array([[5, 0, 6], [0, 5, 4], [0, 0, 0]], np.float32), (F, 1, 1))), {}, "the K of"),
    ],
)
def test_a_scene_whose_parts_do_not_fit_together_is_refused(scene, tmp_path, arrays, fields, what):
    scene.save(tmp_path)
    with np.load(tmp_path / "scene.npz") as archive:
        whole = dict(archive)
    header = json.loads(str(whole["header"]))
    header["fields"] |= fields
    np.savez(tmp_path / "scene.npz", **{**whole, "header": np.array(json.dumps(header)), **arrays})
    with pytest.raises(errors.InputError, match=f"do not fit together .*{what}"):
        Scene.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        dict(scale_x=0),
        dict(scale_y=-1),
        dict(scale_x=float("nan")),
        dict(offset_x=float("inf")),
        dict(original_width=0),
        dict(original_width=-5),
        dict(original_height=1.5),
        dict(original_width=10**9),
        dict(original_width=1 << 20, original_height=1 << 20),
        dict(scale_x=1e300),
        dict(scale_y=1e-300),
        dict(scale_y=10**400),
        dict(offset_x=1e30),
        dict(offset_x=float(W)),
        dict(offset_y=-1e5),
        dict(offset_y=-1e300),
        dict(original_width=True),
        dict(model_height=float(H)),
    ],
)
def test_a_transform_that_is_none_is_refused(scene, tmp_path, change):
    fields = {"transforms": [dataclasses.asdict(t) | change for t in scene.transforms]}
    test_a_scene_whose_parts_do_not_fit_together_is_refused(scene, tmp_path, {}, fields, "a transform is ")


def test_an_array_that_claims_terabytes_is_damaged(scene, tmp_path):
    scene.save(tmp_path)
    path = tmp_path / "scene.npz"
    with np.load(path) as archive:
        whole = dict(archive)
    huge = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (F, 1 << 40)}
    np.lib.format.write_array_header_1_0(huge, shape)
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in whole.items():
            plain = io.BytesIO()
            np.save(plain, array)
            archive.writestr(f"{name}.npy", (huge if name == "depth" else plain).getvalue())
    with pytest.raises(errors.InputError, match="is damaged"):
        Scene.load(tmp_path)


@pytest.mark.parametrize(
    "header",
    [[1], {}, {"format_version": None}, {"fields": [1]}, {"fields": None}, {"format_version": "x"}]
    + [
        {"format_version": float("inf")},
        {"format_version": -1},
        {"format_version": 1.5},
        {"format_version": True},
    ],
)
def test_a_header_that_is_none_is_refused(scene, tmp_path, header):
    scene.save(tmp_path)
    with np.load(tmp_path / "scene.npz") as archive:
        whole = dict(archive)
    if header and isinstance(header, dict):
        header = json.loads(str(whole["header"])) | header
    np.savez(tmp_path / "scene.npz", **whole | {"header": np.array(json.dumps(header))})
    with pytest.raises(errors.InputError, match="damaged, or no scene"):
        Scene.load(tmp_path)


def test_a_changed_byte_is_noticed_or_of_no_importance(scene, tmp_path):
    scene.save(tmp_path)
    path, rng = tmp_path / "scene.npz", np.random.default_rng(0)
    whole = path.read_bytes()
    # At the archive's end stands its directory, which also says how each array is compressed.
    for place in [*range(0, len(whole), 61), *range(len(whole) - 900, len(whole), 2)]:
        path.write_bytes(whole[:place] + bytes([rng.integers(256)]) + whole[place + 1 :])
        try:
            loaded = Scene.load(tmp_path)
        except errors.Error:
            continue
        for name in ("points", "depth", "K", "colors", "valid"):
            np.testing.assert_array_equal(getattr(loaded, name), getattr(scene, name))
        assert loaded.transforms == scene.transforms and loaded.names == scene.names


def test_formats_are_written_by_name_and_said(scene, tmp_path):
    names = export.write(scene, tmp_path, ("ply", "depth", "scene"), ExportOptions(max_points=5))
    assert names == ["points.ply", "depth", "scene.npz"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)
    assert b"element vertex 5\n" in (tmp_path / "points.ply").read_bytes()
    for format in base.all_formats():
        assert format.name in base.FORMATS.names() and format.files


def test_all_that_is_wrong_with_formats_is_said_before_anything_is_written(scene, tmp_path, monkeypatch):
    with pytest.raises(errors.InputError, match="no format 'obj'; there are cameras, depth") as raised:
        export.write(scene, tmp_path, ("ply", "obj"))
    assert raised.value.argument == "formats"
    monkeypatch.setattr(base.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.ExtraError, match=r"fastvggt_jax\[glb\]"):
        export.write(scene, tmp_path, ("ply", "glb"))
    assert not list(tmp_path.iterdir())
    assert "glb" not in export.default_formats() and [f.name for f in export.missing_formats()] == ["glb"]


def test_the_cloud_is_made_once_for_all_formats(scene, tmp_path, monkeypatch):
    calls, options = [], dict(conf_percentile=5.0, edge_filter=9.0, voxel=0.5, max_points=50)
    real = Scene.point_cloud
    monkeypatch.setattr(Scene, "point_cloud", lambda self, **how: calls.append(how) or real(self, **how))
    export.write(scene, tmp_path, ("ply", "overview"), ExportOptions(**options))
    assert calls == [options]


@pytest.mark.parametrize(
    "options",
    [{}, {"max_points": 50}, {"max_points": 10**6}, {"conf_percentile": 40.0, "edge_filter": 0.3}]
    + [{"voxel": 0.5, "max_points": 50}],
)
def test_how_many_points_there_are_is_known_without_the_cloud(scene, options):
    made, counted = (base.Export.of(scene, ExportOptions(**options)) for _ in range(2))
    assert made.points == len(made.cloud) == counted.points > 0
    assert "cloud" not in counted.__dict__ or "voxel" in options


@pytest.mark.parametrize(("cores", "threads"), [(1, [1, 1, 1]), (2, [1, 1, 2]), (16, [4, 4, 8])])
def test_no_more_threads_than_cores(scene, tmp_path, monkeypatch, cores, threads):
    """They would wait for Python's lock, which takes a fifth of the time more."""
    asked = []
    for module in (base, depth, tracks):
        of = module.ThreadPoolExecutor
        monkeypatch.setattr(
            module, "ThreadPoolExecutor", lambda count, of=of: asked.append(count) or of(count)
        )
    export_of = base.Export(scene, ExportOptions(), cores=cores)
    base.write_formats(export_of, tmp_path, base.check_formats(("depth", "colmap")))
    assert sorted(asked) == threads


def test_options_reach_every_format_that_they_are_for(scene, tmp_path):
    trimesh = pytest.importorskip("trimesh")
    options = ExportOptions(conf_percentile=50, depth_original=True)
    export.write(scene, tmp_path, ("ply", "glb", "depth"), options)
    count = len(scene.point_cloud(conf_percentile=50))
    assert count < scene.valid.sum()
    assert f"element vertex {count}\n".encode() in (tmp_path / "points.ply").read_bytes()
    assert len(trimesh.load_scene(tmp_path / "scene.glb").geometry["points"].vertices) == count
    shapes = [np.load(path)["depth"].shape for path in (tmp_path / "depth").glob("*.npz")]
    assert shapes == [(16, 24)] * F  # the photographs', not the model's


@pytest.mark.parametrize(
    "options, argument",
    [
        (dict(depth_original="x"), "depth_original"),
        (dict(copy_photographs=1), "copy_photographs"),
        (dict(track_points=True), "track_points"),
        (dict(conf_percentile=101), "conf_percentile"),
        (dict(edge_filter=0), "edge_filter"),
        (dict(voxel=float("nan")), "voxel"),
        (dict(edge_filter="0.1"), "edge_filter"),
        (dict(max_points=0), "max_points"),
        (dict(max_points=float("nan")), "max_points"),
        (dict(max_points=10.5), "max_points"),
        (dict(max_points=True), "max_points"),
    ],
)
def test_options_out_of_their_range_are_named(options, argument):
    with pytest.raises(errors.InputError, match=argument) as raised:
        ExportOptions(**options)
    assert raised.value.argument == argument


def test_a_format_of_ones_own(scene, tmp_path):
    with export.registered(XYZ):
        assert export.write(scene, tmp_path, ("xyz",)) == ["points.xyz"]
        assert "xyz" in export.default_formats()
    lines = (tmp_path / "points.xyz").read_text().splitlines()
    assert len(lines) == scene.valid.sum()
    with pytest.raises(errors.InputError):
        export.write(scene, tmp_path, ("xyz",))
