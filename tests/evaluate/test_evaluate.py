"""Evaluation: a perfect model gets perfect scores, a random one goes the whole way, and the baseline is a
fair one.
"""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fastvggt_jax import Sparsity, cli, geometry
from fastvggt_jax.attention import sparse_global_attention
from fastvggt_jax.datasets.synthetic import sample
from fastvggt_jax.evaluate import ablations, plot, stereo, synthetic
from fastvggt_jax.evaluate import cli as evaluate_cli
from fastvggt_jax.evaluate.runner import BASELINES, DEFINITIONS, Scenes, Truth, estimate, evaluate
from fastvggt_jax.io.weights import save_params
from fastvggt_jax.models.prediction import Prediction

SCENES = Scenes(count=2, views=3, size=42, batch=2)
BEST = {
    "rotation error": 0,
    "translation error": 0,
    "RRA@5": 100,
    "RTA@15": 100,
    "AUC@5": 100,
    "AUC@30": 100,
    "ATE": 0,
}
BEST |= {
    "AbsRel": 0,
    "delta": 100,
    "point error": 0,
    "accuracy": 0,
    "completeness": 0,
    "Chamfer": 0,
    "normal consistency": 1,
}


@pytest.fixture(scope="module")
def samples():
    rendered = [
        sample("test", i, frames=SCENES.views, height=SCENES.size, width=SCENES.size)
        for i in range(SCENES.count)
    ]
    return jax.tree.map(lambda *x: jnp.stack(x), *rendered)


def as_vggt(s) -> Prediction:
    K = jnp.broadcast_to(s.K[:, None], (*s.depth.shape[:2], 3, 3))
    pose_enc = geometry.encode_pose(s.cam_from_world, K, SCENES.size, SCENES.size)
    return Prediction(pose_enc=pose_enc, depth=jnp.where(s.depth > 0, s.depth, 1))


def as_pi3(s) -> Prediction:
    """In another world and unit."""
    scale, turned = 7.0, geometry.quat_xyzw_to_rotation([0.3, -0.5, 0.1, 0.8])
    world = jnp.eye(4).at[:3, :3].set(turned).at[:3, 3].set(jnp.array([3.0, -1, 5]))
    poses = world @ s.world_from_cam.at[..., :3, 3].multiply(scale)
    points = scale * s.world_points @ turned.T + world[:3, 3]
    local = jnp.einsum("bfij,bfhwj->bfhwi", s.cam_from_world[..., :3], s.world_points, precision="highest")
    local = scale * (local + s.cam_from_world[:, :, None, None, :, 3])
    return Prediction(points=points, local_points=local, camera_poses=poses)


@pytest.fixture(scope="module")
def perfect(samples):
    """The truth, through either kind of prediction."""
    return {model: jax.jit(lambda s, model=model: estimate(model(s)))(samples) for model in (as_vggt, as_pi3)}


@pytest.mark.parametrize("model", [as_vggt, as_pi3])
def test_a_perfect_model_has_perfect_scores(samples, perfect, model):
    calls = []

    def predict(images):
        np.testing.assert_array_equal(images, samples.images)
        return perfect[model], None

    result = evaluate({"perfect": predict}, SCENES, lambda: calls.append(1))["perfect"]
    summary = result.summary()
    assert (
        set(summary) == set(DEFINITIONS) - {"scene's size", "baselines"}
        and summary["effective sparsity"] == 0
        and len(calls) == 1
    )
    for name, best in BEST.items():
        assert summary[name] == pytest.approx(best, abs=0.02), name
    assert len(result.report()["scenes"]["AUC@30"]) == 2


def test_what_is_spoilt_is_what_gets_worse(perfect):
    """One camera's pose, then the depth alone: each shows in its own metrics and not in the other's."""
    good = perfect[as_vggt]
    turned = (
        geometry.quat_xyzw_to_rotation([np.sin(np.deg2rad(5)), 0, 0, np.cos(np.deg2rad(5))])
        @ good.cam_from_world[:, 2]
    )
    of_camera = good.replace(cam_from_world=good.cam_from_world.at[:, 2].set(turned))
    noise = jnp.exp(0.5 * jax.random.normal(jax.random.key(0), good.depth.shape))
    of_depth = good.replace(depth=good.depth * noise)
    density = jnp.array([0.25, 0.75])
    predictors = {"camera": lambda _: (of_camera, density), "depth": lambda _: (of_depth, None)}
    results = {name: result.summary() for name, result in evaluate(predictors, SCENES, together=True).items()}
    assert results["camera"]["RRA@5"] == pytest.approx(100 / 3) and results["camera"][
        "rotation error"
    ] == pytest.approx(10, abs=0.01)
    assert results["camera"]["AbsRel"] < 1e-4 and results["camera"]["effective sparsity"] == pytest.approx(
        0.5
    )
    assert (
        results["depth"]["AUC@30"] == 100
        and results["depth"]["AbsRel"] > 0.2
        and results["depth"]["delta"] < 60
    )


def test_the_medians_are_over_the_pairs_of_all_scenes(perfect):
    """Of two scenes with three pairs each, one wrong in all of them: the median lies between the two."""
    good = perfect[as_vggt]
    wrong = jnp.stack(
        [geometry.quat_xyzw_to_rotation([0, np.sin(a), 0, np.cos(a)]) for a in np.deg2rad([0.0, 20, 45])]
    )
    spoilt = good.replace(cam_from_world=good.cam_from_world.at[1].set(wrong @ good.cam_from_world[1]))
    summary = evaluate({"x": lambda _: (spoilt, None)}, SCENES)["x"].summary()
    assert 1 < summary["rotation error"] == pytest.approx((0 + 40) / 2, abs=0.1)


def test_pairs_are_told_apart_by_the_distance_of_their_cameras(perfect, samples):
    """Of the second scene all rotations are wrong; each pair is counted where its baseline lies."""
    good = perfect[as_vggt]
    turned = jnp.stack(
        [geometry.quat_xyzw_to_rotation([0, np.sin(a), 0, np.cos(a)]) for a in np.deg2rad([0.0, 20, 45])]
    )
    spoilt = good.replace(cam_from_world=good.cam_from_world.at[1].set(turned @ good.cam_from_world[1]))
    found = evaluate({"x": lambda _: (spoilt, None)}, SCENES)["x"].by_baseline()
    centres = np.asarray(samples.world_from_cam)[..., :3, 3]
    sizes = [Truth(jax.tree.map(lambda x, b=b: x[b], samples)).size for b in range(2)]
    share = np.array(
        [
            [np.linalg.norm(c[i] - c[j]) / size for i, j in ((0, 1), (0, 2), (1, 2))]
            for c, size in zip(centres, sizes, strict=True)
        ]
    )
    assert (
        len(found) > 1
        and sum(bin["share"] for bin in found) == pytest.approx(100)
        and all(bin["from"] in BASELINES for bin in found)
    )
    for bin in found:
        inside = (100 * share >= bin["from"]) & (100 * share < (bin["to"] or np.inf))
        assert bin["share"] == pytest.approx(100 * inside.mean())
        assert bin["RRA@5"] == pytest.approx(100 * inside[0].sum() / inside.sum())


def test_a_prediction_that_is_not_finite_is_named(perfect):
    bad = perfect[as_vggt]
    bad = bad.replace(depth=bad.depth.at[1, 0, 0, 0].set(jnp.nan))
    with pytest.raises(
        ValueError, match="broken: the model's cameras or points of test scene 1 are not finite"
    ):
        evaluate({"broken": lambda _: (bad, None)}, SCENES)


def test_the_size_of_a_scene_is_its_mean_distance_from_the_first_camera(samples):
    scene = jax.tree.map(lambda x: x[0], samples)
    centre = np.asarray(scene.world_from_cam)[0, :3, 3]
    distances = np.linalg.norm(np.asarray(scene.world_points) - centre, axis=-1)[np.asarray(scene.valid)]
    assert Truth(scene).size == pytest.approx(distances.mean(), rel=1e-5)


def test_batches_are_whole():
    assert (
        Scenes(count=200, batch=8).batch == 8
        and Scenes(count=9, batch=4).batch == 3
        and Scenes(count=2, batch=4).batch == 2
    )


# ---- configurations


@partial(jax.jit, static_argnums=(0, 3))
def masks(kind, q, k, special_keys="dense"):
    """Of 52 patches, 7 blocks of 8 keys, and 10 special keys after them."""
    runs = (52, 10) if special_keys == "dense" else (62,)
    sparsity = kind(0.6, 0.5, (16, 8), special_keys=special_keys)
    return sparsity.block_mask(q, k, keep_count=2, cdf_threshold=0.5, kv_runs=runs).to_dense()


def queries_and_keys(batch=2):
    q, k = jax.random.normal(jax.random.key(0), (2, batch, 52, 2, 16))
    return 3 * q, k


@pytest.mark.parametrize("special_keys", ["dense", "official"])
def test_random_blocks_are_as_many_in_every_row_and_leave_special_keys_alone(special_keys):
    chosen, random = (
        np.asarray(masks(kind, *queries_and_keys(), special_keys))
        for kind in (Sparsity, ablations.RandomBlocks)
    )
    np.testing.assert_array_equal(random.sum(-1), chosen.sum(-1))
    assert len(np.unique(chosen.sum(-1))) > 1, "rows keep different numbers, or equality says little"
    assert random[..., 7:].all() and (random[..., :7] != chosen[..., :7]).any((-1, -2)).all()


def test_random_blocks_are_drawn_anew_for_every_row_and_other_queries_and_alike_for_the_same():
    """Of queries that are all alike and of any length, for which the method keeps the same blocks in every
    row.
    """
    _, k = queries_and_keys()
    ones = jnp.ones_like(k)
    draw = lambda kind, length: np.asarray(masks(kind, 1e-3 * length * ones, k))
    np.testing.assert_array_equal(draw(Sparsity, 1), draw(Sparsity, 2))
    assert (draw(Sparsity, 1) == draw(Sparsity, 1)[:, :, :1]).all()
    np.testing.assert_array_equal(draw(ablations.RandomBlocks, 1), draw(ablations.RandomBlocks, 1))
    assert (draw(ablations.RandomBlocks, 1) != draw(ablations.RandomBlocks, 2)).any()
    assert (draw(ablations.RandomBlocks, 1) != draw(ablations.RandomBlocks, 1)[:, :, :1]).any()


def test_random_blocks_have_no_favourites():
    share = np.asarray(masks(ablations.RandomBlocks, *queries_and_keys(100)))[..., :7].mean((0, 1, 2))
    assert np.abs(share - share.mean()).max() < 0.08


def test_global_attention_takes_the_blocks_that_its_sparsity_chooses():
    class Asked(Exception):
        pass

    class Chooser(Sparsity):
        def block_mask(self, q, k, *, keep_count, cdf_threshold, kv_runs):
            raise Asked(q.shape[1], k.shape[1], keep_count, cdf_threshold, kv_runs)

    q = jnp.zeros((1, 3 * 25, 2, 16))
    with pytest.raises(Asked) as asked:
        sparse_global_attention(
            q, q, q, frames=3, num_special=5, sparsity=Chooser(0.5), keep_count=2, cdf_threshold=0.5
        )
    assert asked.value.args == (60, 60, 2, 0.5, (60, 15))


def test_the_ablations_are_all_there():
    runs = ablations.ablations(24, (64, 32), 8 * 225)
    without = [run.label for run in runs if run.family != "special keys as released"]
    assert (
        [run.label for run in ablations.ablations(24, (64, 32), 8 * 256)]
        == without
        != [run.label for run in runs]
    )
    assert runs[0] == ablations.Configuration("dense", "dense", None) and len(
        {run.label for run in runs}
    ) == len(runs)
    families = {
        family: [run.sparsity for run in runs if run.family == family]
        for family in dict.fromkeys(run.family for run in runs)
    }
    layers = {where: families.pop(f"{where} layers")[0] for where in ("first", "middle", "last")}
    assert [s.layers for s in layers.values()] == [(0, 1, 2, 3), (10, 11, 12, 13), (20, 21, 22, 23)]
    assert all(s.sparse_ratio == 1 for s in layers.values())
    points = lambda family: [(s.sparse_ratio, s.cdf_threshold) for s in families[family]]
    assert points("random blocks") == points("ρ and τ") == list(ablations.POINTS)
    assert {type(s) for s in families["random blocks"]} == {ablations.RandomBlocks}
    assert (
        {s.cdf_threshold for s in families["ρ alone"]}
        == {s.sparse_ratio for s in families["τ alone"]}
        == {None}
    )
    for family, field, value in (
        ("special keys as released", "special_keys", "official"),
        ("Hilbert order", "order", "hilbert"),
    ):
        assert all(getattr(s, field) == value for s in families[family])
    assert all(s.pool == "max" for s in families["max pooling"])
    assert all(run.sparsity.block == (64, 32) for run in runs[1:])
    some = ablations.ablations(24, (64, 32), 8 * 256, ["random blocks", "last layers"])
    assert [run.family for run in some] == [
        "dense",
        *["random blocks"] * len(ablations.POINTS),
        "last layers",
    ]
    for depth in (1, 4, 18):
        for run in ablations.ablations(depth, (128, 64), 1000)[1:]:
            run.sparsity.check_depth(depth)


def test_sparsity_on_the_command_line():
    parse = lambda text: ablations.parse(text, (16, 8))
    assert parse("dense").sparsity is None and parse("0.5,0.7").sparsity == Sparsity(0.5, 0.7, (16, 8))
    assert parse("0.5").sparsity == parse("0.5,").sparsity == Sparsity(0.5, None, (16, 8))
    assert parse(",0.7").sparsity == Sparsity(None, 0.7, (16, 8)) and parse(",0.7").label == "τ alone: τ 0.7"
    for text in ("half", "0.5,0.7,0.9", "0.5;0.7"):
        with pytest.raises(ValueError, match="--sparsity must be dense, or"):
            parse(text)


# ---- the command


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    model, params = tiny
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_params(path, params, model)
    return path


def run(*args):
    return CliRunner().invoke(cli.app, ["evaluate", *(str(a) for a in args)])


def test_a_random_model_the_whole_way(checkpoint, samples, tmp_path):
    size = ["--scenes", 2, "--views", 3, "--size", 42, "--block", "8,4"]
    done = run(
        "synthetic",
        "--model",
        checkpoint,
        *size,
        "--sparsity",
        "dense",
        "--sparsity",
        "0.9,0.1",
        "-o",
        tmp_path / "out",
        "--json",
    )
    assert done.exit_code == 0, (done.output, done.exception)
    report = json.loads(done.stdout)
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == report
    assert report["scenes"] == {"split": "test", "first": 0, "count": 2, "views": 3, "size": 42, "batch": 2}
    assert report["model"] == {"file": "tiny.safetensors", "class": "VGGT", "dtype": "float32"}
    dense, sparse = report["configurations"]
    assert (
        dense["label"] == "dense" and dense["summary"]["effective sparsity"] == 0 and dense["density"] is None
    )
    assert 0.5 < sparse["summary"]["effective sparsity"] < 0.9 and len(sparse["density"]) == 4
    assert dense["summary"]["AUC@30"] < 90 and dense["summary"]["point error"] > 1, (
        "random weights reconstruct nothing"
    )
    assert sparse["summary"]["point error"] != dense["summary"]["point error"]
    with Image.open(tmp_path / "out" / "quality.png") as picture:
        assert picture.width > 1000
    again = run("synthetic", "--model", checkpoint, *size, "-o", tmp_path / "out")
    assert again.exit_code == 2 and "is not empty" in again.stderr
    lines = evaluate_cli.table(report["configurations"]).splitlines()
    assert (
        len(lines) == 3
        and len({len(line) for line in lines}) == 1
        and lines[2].startswith("ρ and τ: ρ 0.9 τ 0.1")
    )
    _, *lines = evaluate_cli.baseline_table(report["configurations"]).splitlines()
    assert (
        len(lines) == 4
        and len({len(line) for line in lines}) == 1
        and lines[3].startswith("ρ and τ: ρ 0.9 τ 0.1")
    )
    _, *lines = evaluate_cli.baseline_table(report["configurations"][:1]).splitlines()
    assert len(lines) == 3 and len({len(line) for line in lines}) == 1 and lines[2].startswith("dense ")


def test_an_interrupted_evaluation_reports_its_scenes_so_far(
    checkpoint, samples, perfect, tmp_path, monkeypatch
):
    calls = []

    def predict(images):
        calls.append(images)
        if len(calls) == interrupted:
            raise KeyboardInterrupt
        return jax.tree.map(lambda x: x[:1], perfect[as_vggt]), None  # of scene 0

    monkeypatch.setattr(synthetic, "predictor", lambda net, params: predict)
    options = [
        "--scenes",
        2,
        "--views",
        3,
        "--size",
        42,
        "--batch",
        1,
        "--sparsity",
        "dense",
        "--sparsity",
        "0.5",
    ]
    interrupted = 4  # the first configuration has seen both scenes, the second one only the first
    done = run("synthetic", "--model", checkpoint, *options, "-o", tmp_path / "out")
    assert (
        done.exit_code == 130
        and "this is of the first 1 of 2 scenes" in done.stderr
        and "AUC@30" in done.stdout
    )
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert report["scenes"]["count"] == 1
    assert [len(row["scenes"]["AUC@30"]) for row in report["configurations"]] == [1, 1]
    assert [row["summary"]["AUC@30"] for row in report["configurations"]] == pytest.approx([100, 100])
    np.testing.assert_array_equal(
        jnp.concatenate(calls[1:3]), samples.images
    )  # batch after batch, each to both
    calls.clear()
    interrupted = 2  # nothing is whole
    with pytest.raises(KeyboardInterrupt):
        synthetic.evaluate({"a": predict, "b": predict}, Scenes(count=2, views=3, size=42, batch=1))


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--scenes", 0], "a test split of 0 scenes has nothing to measure"),
        (["--views", 1], "need at least 2 views, not 1"),
        (["--first", -1], "the first scene must be at least 0"),
        (
            ["--first", 99999999999],
            "200 scenes from number 99999999999 on lead beyond the last one, number 2147483647",
        ),
        (["--size", 60], "--size must be a positive multiple of the model's patches of 14 pixels, not 60"),
        (["--sparsity", "most"], "--sparsity must be dense, or"),
        (["--sparsity", "1.5"], "sparse_ratio=1.5 must lie in [0, 1]"),
        (
            ["--family", "noise"],
            "there is no family of ablations 'noise'; there are dense, ρ and τ, ρ alone,",
        ),
        (["--block", "128"], "--block must be two positive numbers"),
        (["--block", "0,64"], "--block must be two positive numbers"),
        (["--plot"], "--plot needs a folder to write quality.png into: give -o"),
        (["--model", "nowhere.safetensors"], "nowhere.safetensors: no such weight file"),
    ],
)
def test_bad_input_is_one_sentence(checkpoint, options, sentence):
    done = run("synthetic", "--model", checkpoint, *options)
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit)
    assert sentence in done.stderr and "Traceback" not in done.output and len(done.stderr.splitlines()) == 1


def test_a_missing_extra_is_named(checkpoint, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for of, extra in ((plot.require_matplotlib, "plot"), (stereo.motorcycle, "evaluate")):
        with pytest.raises(ModuleNotFoundError, match=rf"pip install 'fastvggt_jax\[{extra}\]'"):
            of()
    done = run("synthetic", "--model", checkpoint, "--plot")
    assert done.exit_code == 2 and "plotting needs matplotlib" in done.stderr


def test_the_plot_has_a_line_a_family_in_order_of_sparsity(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    monkeypatch.setattr(
        Axes, "plot", lambda self, x, y, label, **style: drawn.append((label, list(x), list(y)))
    )
    metric = lambda sparsity, value: {"effective sparsity": sparsity} | dict.fromkeys(plot.PANELS, value)
    rows = [{"family": "dense", "summary": metric(0, 9)}]
    rows += [{"family": "a", "summary": metric(0.5, 7)}, {"family": "a", "summary": metric(0.2, 8)}]
    plot.write_plot(rows, "title", tmp_path / "p.png")
    assert drawn == [("a", [20, 50], [8, 7])] * len(plot.PANELS) and (
        tmp_path / "p.png"
    ).read_bytes().startswith(b"\x89PNG")


# ---- the stereo pair


def test_rank_correlation_knows_order_alone():
    disparity = np.random.default_rng(0).uniform(1, 60, (20, 30))
    assert stereo.rank_correlation(5 / (disparity + 31), disparity) == (pytest.approx(1), 600)
    assert stereo.rank_correlation(disparity, disparity)[0] == pytest.approx(-1)
    depth, known = 1 / disparity, disparity.copy()
    known[0], depth[1], depth[2] = np.inf, -1, np.nan
    assert stereo.rank_correlation(depth, known) == (pytest.approx(1), 17 * 30)
    with pytest.raises(ValueError, match="hardly any pixel"):
        stereo.rank_correlation(depth, np.full_like(disparity, np.nan))


class Seer:
    """In place of a model: takes the red of the first view for its disparity."""

    image_mode, image_size, patch_size, dtype = "crop", 518, 14, np.float32

    def clone(self, sparsity):
        return self

    def apply(self, params, images, mutable):
        B, F, H, W, _ = images.shape
        pose_enc = jnp.zeros((B, F, 9)).at[..., 6:].set(1)
        return Prediction(pose_enc=pose_enc, depth=1 / (0.1 + images[..., :1])), {}


def stereo_pair():
    """A slanted, wavy surface whose left photograph is red where it is near; the right one is not."""
    y, x = np.mgrid[:60, :100]
    disparity = 10 + 0.3 * x + 4 * np.sin(y / 9)
    left = np.repeat(np.rint(4 * disparity)[..., None], 3, -1).astype(np.uint8)
    disparity[:, :10] = np.inf
    return left, 255 - left, disparity


def test_a_stereo_pair_is_measured_in_the_left_photographs_pixels(monkeypatch):
    monkeypatch.setattr(stereo, "motorcycle", stereo_pair)
    monkeypatch.setattr(evaluate_cli, "_load", lambda path, dtype: (Seer(), {}))
    done = run("stereo", "--model", "any.safetensors", "--size", 70, "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    report = json.loads(done.stdout)
    assert (
        report["rank correlation"] > 0.995
        and report["pixels"] == 60 * 90
        and report["effective sparsity"] == 0
    )
    assert report["size"] == {"width": 70, "height": 42, "mode": "crop"}
    text = run("stereo", "--model", "any.safetensors", "--size", 70)
    assert "over 5,400 pixels (90% of the left photograph, dense)" in text.stdout


def test_the_real_pair_is_there():
    pytest.importorskip("skimage")
    left, right, disparity = stereo.motorcycle()
    assert (
        left.shape == right.shape == (500, 741, 3)
        and disparity.shape == (500, 741)
        and np.isfinite(disparity).mean() > 0.8
    )
