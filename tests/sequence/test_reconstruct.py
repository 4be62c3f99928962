"""`fastvggt reconstruct` of a sequence in chunks; what the model would say is the truth, in a world of each
chunk's own.
"""

import contextlib
import dataclasses
import json
import weakref
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fastvggt_jax import Scene, chunks, load_images, pipeline, programs, reconstruct_sequence, to_scene
from fastvggt_jax.cli.app import app
from fastvggt_jax.errors import InputError, MissingError, OutOfMemoryError
from fastvggt_jax.io.weights import save_params
from fastvggt_jax.models import memory, registry
from fastvggt_jax.models.conditions import prepare
from fastvggt_jax.models.memory import needed_bytes
from fastvggt_jax.programs import DoesNotFit
from fastvggt_jax.sequence.models import TOGETHER, describe
from fastvggt_jax.testing.random_weights import random_params
from fastvggt_jax.testing.tiny import tiny_model
from tests.sequence.block import Block
from tests.toys.model import PATH, Toy

COUNT = 20


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for i in range(COUNT):
        Image.new("RGB", (28, 16), (i, 99, 9)).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture(autouse=True)
def toys():
    with registry.registered("toy", PATH):
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path, model = tmp_path_factory.mktemp("weights") / "toy.safetensors", Toy()
    save_params(path, random_params(model), model, source="random numbers")
    return path


@pytest.fixture
def block(monkeypatch):
    block = Block(COUNT - 2, again=2, size=(16, 28))

    def predict(model, params, images, step, points_from, **others):
        frames = np.array([int(name[:2]) for name in images.names])
        if len(frames) > block.fit_at_once:
            raise DoesNotFit("out of memory: too many")
        found = block.reconstruct(frames)
        fog = np.isin(frames, block.fog)[None, :, None, None]
        conf = np.where(fog, 0, found.conf).astype(np.float32)
        with step("compile"), step("run"):
            return dataclasses.replace(found, conf=conf, depth_conf=conf, conf_floor=1.0), None

    block.fit_at_once, block.fog = COUNT, []
    monkeypatch.setattr(pipeline, "predict", predict)
    return block


def run(photographs, weights, out, *more):
    options = ["-c", weights, "-o", out, "--size", 28, "--format", "scene", "--conf-percentile", 0, *more]
    return CliRunner().invoke(app, ["reconstruct", *map(str, (photographs, *options))])


def error(block, scene, frames=None):
    found = dataclasses.make_dataclass("Found", ["cam_from_world"])(scene.cam_from_world[None])
    return block.error(found, np.arange(len(scene.names)) if frames is None else frames)


def test_chunks_are_one_scene(photographs, weights, tmp_path, block):
    result = run(photographs, weights, tmp_path / "out", "--chunk", 8, "--overlap", 3, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["sequence"]["chunks"] == [[0, 7], [4, 11], [8, 15], [12, 19]]
    assert report["sequence"]["pieces"] == [COUNT]
    scene = Scene.load(tmp_path / "out")
    assert scene.names == tuple(f"{i:02}.png" for i in range(COUNT)) and error(block, scene) < 1e-3
    in_words = run(photographs, weights, tmp_path / "in words", "--chunk", 8, "--overlap", 3)
    assert "joined 4 chunks, the worst two off by 0.00% of the distance; 0 loops closed" in in_words.stdout


def test_what_all_at_once_was_tried_with_is_gone_before_chunks_are(
    photographs, weights, tmp_path, block, monkeypatch
):
    """The error that is kept, in case that chunks do not fit either, holds nothing on the device."""
    predict, held = pipeline.predict, []

    def run_program(model, params, images, *more, **others):
        pixels = np.ones(1)  # as jax' own functions hold what is on the device
        if len(images.names) == COUNT:
            held.append(weakref.ref(pixels))
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        assert held[0]() is None
        return predict(model, params, images, *more, **others)

    def tried(*given, **others):
        try:
            return run_program(*given, **others)
        except RuntimeError as error:
            raise DoesNotFit("out of memory: too many") from error

    monkeypatch.setattr(pipeline, "predict", tried)
    result = run(photographs, weights, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "chunks of 10" in result.stderr and len(held) == 1


def test_what_fits_is_reconstructed_at_once(photographs, weights, tmp_path, block):
    result = run(photographs, weights, tmp_path / "out", "--chunk", COUNT, "--json")
    report = json.loads(result.stdout)
    assert report["sequence"] is None
    said = "20 photographs are no more than a chunk of 20: they are reconstructed at once"
    assert said in report["warnings"]


def test_what_is_about_chunks_is_said_to_do_nothing_without_them(photographs, weights, tmp_path, block):
    report = json.loads(run(photographs, weights, tmp_path / "out", "--overlap", 9, "--json").stdout)
    assert any(text.startswith("overlap did nothing: it is about chunks") for text in report["warnings"])


def test_chunks_are_taken_where_not_all_fit(photographs, weights, tmp_path, block):
    block.fit_at_once = 10
    report = json.loads(run(photographs, weights, tmp_path / "out", "--json").stdout)
    assert report["sequence"]["chunks"] == [[0, 9], [5, 14], [10, 19]]  # half of what did not fit
    said = (
        "20 photographs do not fit into memory at once: they are reconstructed in chunks of 10 that overlap"
    )
    assert any(text.startswith(said) for text in report["warnings"])
    assert error(block, Scene.load(tmp_path / "out")) < 1e-3
    block.fit_at_once = 9
    report = json.loads(run(photographs, weights, tmp_path / "fewer", "--json").stdout)
    assert report["sequence"]["chunks"][0] == [0, 7]
    block.fit_at_once = 7  # fewer than a chunk is worth
    result = run(photographs, weights, tmp_path / "no")
    assert result.exit_code == 1 and "out of memory" in result.stderr and not (tmp_path / "no").exists()


def test_all_at_once_while_it_fits_else_the_longest_chunks_that_do(
    photographs, weights, tmp_path, monkeypatch
):
    """By programs that are compiled, with a limit of memory that a CPU does not have."""
    limit, needs = [None], []

    def fits(program):
        needs.append(needed_bytes(program))
        return memory.fits(program)

    def reconstruct(name, bytes_limit, **more):
        limit[0] = bytes_limit
        needs.clear()
        given = dict(size=28, formats=("scene",), **more)
        settings = pipeline.Settings((str(photographs),), str(weights), tmp_path / name, **given)
        report = pipeline.reconstruct(settings, lambda step: contextlib.nullcontext())
        return report["sequence"], " ".join(report["warnings"]), Scene.load(tmp_path / name)

    for module in (memory, chunks, programs):
        monkeypatch.setattr(module, "memory_limit", lambda: limit[0])
    monkeypatch.setattr(programs, "fits", fits)
    *_, whole = reconstruct("no limit", None)
    all_need = needs[0]
    sequence, said, scene = reconstruct("just enough", all_need, overlap=3, loops=True)
    assert sequence is None and "do not fit" not in said and set(needs) == {all_need}
    assert "overlap and loops did nothing" in said
    np.testing.assert_array_equal(scene.points, whole.points)
    for share, longest in ((0.999, 18), (0.6, 11)):
        sequence, said, scene = reconstruct(f"{share} of it", int(share * all_need))
        assert needs[:2] == [all_need, all_need], "at once, and with the host's memory, were tried"
        assert len(set(needs[2:])) == 1 and needs[2] <= limit[0] < all_need, "one program for all chunks"
        lengths = {last - first + 1 for first, last in sequence["chunks"]}
        assert lengths == {longest}
        assert (
            f"20 photographs do not fit into memory at once: they are reconstructed in chunks of {longest}"
            in said
        )
        assert "which is less exact" in said
        np.testing.assert_allclose(scene.points, whole.points, atol=1e-3)
    with pytest.raises(
        OutOfMemoryError, match="20 photographs of 28x16 pixels need about .*, and JAX may use"
    ):
        reconstruct("too little", int(0.3 * all_need))
    assert not (tmp_path / "too little").exists()


def test_pieces_are_written_apart_and_named(photographs, weights, tmp_path, block):
    block.fog = [8, 9, 10, 11]
    out = tmp_path / "out"
    result = run(photographs, weights, out, "--chunk", 8, "--overlap", 3, "--json")
    report = json.loads(result.stdout)
    first, second = report["sequence"]["pieces"]
    assert [one["folder"] for one in (first, second)] == ["piece-1", "piece-2"]
    assert first["photographs"] + second["photographs"] == report["photographs"]
    assert first["points"] + second["points"] == report["points"]
    assert sorted(path.name for path in out.iterdir()) == ["piece-1", "piece-2"]
    scenes = [Scene.load(out / one["folder"]) for one in (first, second)]
    assert scenes[0].names[-1] == "09.png" and scenes[1].names[0] == "10.png"
    for scene, frames in zip(scenes, (np.arange(10), np.arange(10, 20)), strict=True):
        assert error(block, scene, frames) < 1e-3
    said = " ".join(report["warnings"])
    assert "from 04.png and from 08.png on share no points that both are sure of" in said
    assert (
        "2 scenes that do not hang together: they are written apart" in said and "piece-1 to piece-2" in said
    )
    with pytest.raises(MissingError, match="holds a scene in 2 pieces: name one, such as .*piece-1"):
        Scene.load(out)
    # They are what overwrite may replace, and nothing else.
    (out / "piece-2" / "mine.txt").write_text("kept")
    kept = run(photographs, weights, out, "--overwrite")
    assert kept.exit_code == 2 and (out / "piece-2" / "mine.txt").read_text() == "kept"
    (out / "piece-2" / "mine.txt").unlink()
    block.fog = []
    assert run(photographs, weights, out, "--overwrite").exit_code == 0
    assert len(Scene.load(out).names) == COUNT and not (out / "piece-1").exists()


def test_loops_are_closed_by_what_the_encoder_sees(photographs, weights, tmp_path, block, monkeypatch):
    asked = []

    def described(model, params, pixels):
        asked.append(len(pixels))
        return np.eye(COUNT)[np.r_[:18, :2]]  # the last two look like the first two

    monkeypatch.setattr(chunks, "describe", described)
    result = run(photographs, weights, tmp_path / "out", "--chunk", 6, "--overlap", 2, "--loops", "--json")
    report = json.loads(result.stdout)
    assert asked == [COUNT] and report["sequence"]["loops"] == [[0, 18]]
    assert error(block, Scene.load(tmp_path / "out")) < 1e-3


def test_each_chunk_is_told_of_its_own_photographs(photographs, tmp_path, block, monkeypatch):
    """... in its own first one's coordinates, though that is the one without a camera."""
    model, cameras = tiny_model("pi3x"), tmp_path / "known.json"
    monkeypatch.setattr(pipeline, "read_model", lambda weights: model)
    monkeypatch.setattr(pipeline, "load_model", lambda *_: (model, {}))
    known, missing = [], 8  # where the third chunk begins
    for i in set(range(COUNT)) - {missing}:
        pose = np.eye(4)
        pose[0, 3] = i * i
        K = [[20 + i, 0, 14], [0, 20 + i, 8], [0, 0, 1]]
        one = {"name": f"{i:02}.png", "width": 28, "height": 16, "K": K}
        known.append(one | {"world_from_cam": pose.tolist()})
    cameras.write_text(json.dumps({"images": known}))
    told, inner = [], pipeline.predict

    def predict(model, params, images, *rest, conditions, **more):
        block.size = images.pixels.shape[1:3]
        told.append((images, conditions))
        return inner(model, params, images, *rest, **more)

    monkeypatch.setattr(pipeline, "predict", predict)
    chunks = ["--chunk", 8, "--overlap", 3, "--cameras", cameras, "--json"]
    result = run(photographs, "pi3x", tmp_path / "out", *chunks)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["sequence"]["chunks"] == [[0, 7], [4, 11], [8, 15], [12, 19]]
    assert len(told) == 4
    fed_of = jax.jit(prepare, static_argnums=(1, 2, 3))
    for first, (images, conditions) in zip((0, 4, 8, 12), told, strict=True):
        frames = np.arange(first, first + 8)
        seen, scale = frames != missing, images.transforms[0].scale_x
        assert conditions.pose_mask.tolist() == conditions.ray_mask.tolist() == [seen.tolist()]
        np.testing.assert_allclose(conditions.K[0, seen, 0, 0], scale * (20 + frames[seen]), rtol=1e-5)
        fed = fed_of(conditions, 1, 8, images.pixels.shape[1:3])
        away = frames[seen] ** 2 - frames[seen][0] ** 2
        np.testing.assert_allclose(fed.unit, away[1:].mean(), rtol=1e-5)
        found = np.asarray(fed.world_from_cam)[0, seen, 0, 3]
        np.testing.assert_allclose(found, away / away[1:].mean(), atol=1e-5)
    some = [one for one in known if one["name"] in ("00.png", "09.png")]
    cameras.write_text(json.dumps({"images": some}))
    report = json.loads(run(photographs, "pi3x", tmp_path / "some", *chunks).stdout)
    text = "3 of 4 chunks have one photograph of a known camera alone, which says nothing there: the model"
    assert sum(one.startswith(text) for one in report["warnings"]) == 1


@pytest.mark.parametrize(
    "options, words",
    [
        (
            ["--chunk", 8, "--overlap", 8],
            "--chunk must be more frames than overlap, not 8 with an overlap of 8",
        ),
        (["--chunk", 8, "--overlap", 0], "--overlap must be a whole number, at least 1, not 0"),
        (["--overlap", 0], "--overlap must be a whole number, at least 1, not 0"),
        (["--chunk", 1], "--chunk must be a whole number, at least 2, not 1"),
        (["--chunk", 8, "--tracks"], "--tracks follows points through all photographs"),
    ],
)
def test_bad_chunks_are_one_sentence(photographs, weights, tmp_path, options, words):
    result = run(photographs, weights, tmp_path / "out", *options)
    assert result.exit_code == 2 and words in result.stderr and not (tmp_path / "out").exists()


def test_known_positions_align_the_pieces_that_have_enough_of_them(photographs, weights, tmp_path, block):
    block.fog = [8, 9, 10, 11]
    rows = [f"{i:02}.png,{','.join(map(str, block.centres[i]))}" for i in range(9)]
    (tmp_path / "known.csv").write_text("\n".join(["name,x,y,z", *rows]))
    options = ["--chunk", 8, "--overlap", 3, "--align-to", tmp_path / "known.csv", "--json"]
    report = json.loads(run(photographs, weights, tmp_path / "out", *options).stdout)
    first, second = report["sequence"]["pieces"]
    assert first["alignment"]["photographs"] == 9 and second["alignment"] is None
    assert any("the piece from 10.png on is not aligned" in text for text in report["warnings"])
    scene = Scene.load(tmp_path / "out" / "piece-1")
    np.testing.assert_allclose(scene.world_from_cam[:, :3, 3], block.centres[:10], atol=0.02)


def test_the_function_does_what_the_command_does():
    model = Toy()
    pixels = np.random.default_rng(0).integers(0, 256, (10, 32, 40, 3), np.uint8)
    images = load_images(pixels, model.image_policy)
    params = jax.jit(model.init)(jax.random.key(0), images.pixels[None])
    whole = to_scene(jax.jit(model.apply)(params, images.pixels[None]), images)
    for chunk in (10, 6):
        (scene,) = reconstruct_sequence(model, params, images, chunk=chunk)
        np.testing.assert_allclose(scene.cam_from_world, whole.cam_from_world, atol=1e-4)
        np.testing.assert_allclose(scene.depth, whole.depth, rtol=1e-4)
        np.testing.assert_allclose(scene.points, whole.points, atol=1e-4)
    with pytest.raises(InputError, match="a Toy has none"):
        reconstruct_sequence(model, params, images, chunk=4, overlap=1, loops=True)


@pytest.mark.parametrize("name", ["pi3", "vggt"])
def test_frames_are_described_each_by_itself(name):
    model = tiny_model(name).clone(dtype=np.float32, depth=4, encoder_depth=1)
    pixels = np.random.default_rng(0).integers(0, 256, (TOGETHER + 2, 28, 42, 3), np.uint8)
    pixels[-1] = pixels[0]
    init = jax.jit(partial(model.init, method="describe"))  # of the encoder alone
    found = describe(model, init(jax.random.key(0), pixels[None, :1]), pixels)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    alike = found @ found[0]
    np.testing.assert_allclose(alike[-1], 1, rtol=1e-5)
    assert (alike[1:-1] < 0.9999).all()
