"""What Pi3X must do whatever its weights: no frame is special, conditions reach what they are about and
nothing else, cameras far away are no trouble, bad input.
"""

import functools
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastvggt_jax import Conditions, Pi3X, Prediction, Scene, Sparsity, load_images, to_scene
from fastvggt_jax.errors import InputError
from fastvggt_jax.geometry import invert_se3
from fastvggt_jax.io.weights import save_params
from fastvggt_jax.models import injection
from fastvggt_jax.models.conditions import prepare, rays_of
from fastvggt_jax.models.injection import Views, prope_attention
from fastvggt_jax.models.rope import patch_positions
from fastvggt_jax.pretrained import from_pretrained
from fastvggt_jax.testing.tiny import tiny_model
from pallas_kernels import BlockMask
from pallas_kernels.shift import FIXED_SHIFT_RANGE
from tests.conftest import TOLERANCE, max_error
from tests.parity.goldens import load_model

FIELDS = ("points", "local_points", "conf", "rays", "metric")
SIDE = 42


@functools.cache
def jitted(model):
    return jax.jit(model.apply)


@pytest.fixture(scope="module")
def tiny():
    return load_model("pi3x_tiny_hd64")


def rotations(rng, *shape):
    q, _ = np.linalg.qr(rng.normal(size=(*shape, 3, 3)))
    return q * np.sign(np.linalg.det(q))[..., None, None]


def known(frames=4, spread=1.0, batch=1, **changed):
    """Conditions of everything, of random cameras."""
    rng = np.random.default_rng(frames)
    pose = np.tile(np.eye(4), (batch, frames, 1, 1))
    pose[..., :3, :3] = rotations(rng, batch, frames)
    pose[..., :3, 3] = spread * rng.normal(size=(batch, frames, 3))
    K = np.array([[40.0, 0, 20], [0, 50, 22], [0, 0, 1]])
    given = dict(
        depth=rng.uniform(1, 3, (batch, frames, SIDE, SIDE)),
        K=K * rng.uniform([[1, 0, 1], [0, 1, 1], [0, 0, 1]], [[1.2, 0, 1.2], [0, 1.2, 1.2], [0, 0, 1]]),
        world_from_cam=pose,
    )
    given["K"] = np.broadcast_to(given["K"], (batch, frames, 3, 3))
    given = {k: np.asarray(v, np.float32) for k, v in given.items()}
    return Conditions(**(given | changed))


def of(*masks):
    return np.array(masks, bool)


@pytest.fixture
def images(views):
    return views(4, SIDE, SIDE)[None]


MASKED = dict(depth_mask=of([1, 0, 1, 1]), ray_mask=of([0, 1, 1, 0]), pose_mask=of([1, 1, 0, 1]))


def test_permuting_frames_and_conditions_permutes_the_output(tiny, images):
    """With depth in play, which sets the unit; the first pose's, where no depth does, is upstream's rule."""
    (model, params), order = tiny, np.array([2, 0, 3, 1])
    conditions = known(**MASKED)
    base = jitted(model)(params, images, conditions)
    moved = jitted(model)(params, images[:, order], jax.tree.map(lambda x: x[:, order], conditions))
    for name in FIELDS:
        mine = getattr(base, name) if name == "metric" else getattr(base, name)[:, order]
        assert max_error(getattr(moved, name), mine) < 3 * TOLERANCE["float32"], name


def test_each_condition_reaches_the_views_whose_mask_is_on_and_one_program_serves_all(tiny, images):
    model, params = tiny
    program = jax.jit(model.apply)
    off = np.zeros((1, 4), bool)
    masks = dict(depth_mask=off, ray_mask=off, pose_mask=off)
    nothing = program(params, images, known(**masks))
    plain = jitted(model)(params, images)
    for name in FIELDS:
        assert max_error(getattr(nothing, name), getattr(plain, name)) < TOLERANCE["float32"], name
    on = of([0, 1, 1, 0])
    for mask, field in (("depth_mask", "depth"), ("ray_mask", "K"), ("pose_mask", "world_from_cam")):
        some = known(**masks | {mask: on})
        found = program(params, images, some)
        assert max_error(found.points, nothing.points) > 1e-3, mask
        # What stands where the mask is off does not matter; of poses neither, depth or not.
        value = np.array(getattr(some, field))
        if field != "world_from_cam":  # whose lengths count in full
            value[0, 0] = np.nan if field == "K" else 0 * value[0, 0]
        changed = program(params, images, some.replace(**{field: value}))
        if field == "K":
            assert max_error(changed.points, found.points) == 0
        assert np.isfinite(changed.points).all()
    # Nor how far away a pose is that is off, where depth gives the unit.
    given = known(**masks | dict(depth_mask=on, pose_mask=on))
    far = np.array(given.world_from_cam)
    far[0, 3, :3, 3] = 1e12
    found, wanted = (program(params, images, one) for one in (given.replace(world_from_cam=far), given))
    for name in FIELDS:
        assert max_error(getattr(found, name), getattr(wanted, name)) == 0, name
    assert program._cache_size() == 1


@pytest.mark.slow
def test_a_mask_of_all_views_is_no_mask(tiny, images):
    model, params = tiny
    on = np.ones((1, 4), bool)
    every = jitted(model)(params, images, known(depth_mask=on, ray_mask=on, pose_mask=on))
    whole = jitted(model)(params, images, known())
    for name in FIELDS:
        assert max_error(getattr(every, name), getattr(whole, name)) < TOLERANCE["float32"], name


@pytest.mark.slow  # the decoder is π³'s, whose sparse goldens hold it
@pytest.mark.parametrize("order", ["raster", "hilbert"])
def test_sparse_attention_that_drops_nothing_is_dense(tiny, images, order):
    """... whatever the order of the patches, by whose columns and rows poses enter too."""
    model, params = tiny
    sparse = model.clone(sparsity=Sparsity(sparse_ratio=0.0, block=(16, 8), order=order))
    dense, found = (jitted(m)(params, images, known(pose_mask=MASKED["pose_mask"])) for m in (model, sparse))
    assert found.density.tolist() == [1] * model.depth and dense.density is None
    for name in FIELDS:
        assert max_error(getattr(found, name), getattr(dense, name)) < 2 * TOLERANCE["float32"], name


@pytest.mark.slow
def test_low_memory_and_chunks_of_frames_change_nothing(tiny, images):
    model, params = tiny
    whole = jitted(model)(params, images, known())
    little = jitted(model.clone(frames_chunk=3, low_memory=True))(params, images, known())
    for name in FIELDS:
        assert max_error(getattr(little, name), getattr(whole, name)) < TOLERANCE["float32"], name


# ---- PRoPE


def attended(q, k, v, pose, posed, grid):
    """The definition, in float64: each pair of tokens by itself, [p of all views, H] each."""
    (T, H), p = q.shape, grid[0] * grid[1]
    frequency = 100.0 ** (-np.arange(H // 8) / (H // 8))
    place = patch_positions(*grid, 0) - 1

    def matrix(t):
        """What moves a key of token t into the world, H x H."""
        m = np.zeros((H, H))
        for g in range(H // 8):
            m[4 * g : 4 * g + 4, 4 * g : 4 * g + 4] = pose[t // p]
        for half, at in enumerate(place[t % p][::-1]):  # column, row
            for j, f in enumerate(frequency):
                a = H // 2 + half * H // 4 + j
                c, s = np.cos(at * f), np.sin(at * f)
                m[np.ix_([a, a + H // 8], [a, a + H // 8])] = [[c, s], [-s, c]]
        return m

    to_world = [matrix(t) for t in range(T)]
    out = np.zeros((T, H))
    for t in range(T):
        here = [np.linalg.inv(to_world[t]) @ m for m in to_world]  # relative: one camera seen from the other
        keys = [s for s in range(T) if posed[s // p]]
        score = np.array([q[t] @ here[s] @ k[s] for s in keys]) / np.sqrt(H)
        weight = np.exp(score - score.max())
        out[t] = sum(w * here[s] @ v[s] for w, s in zip(weight / weight.sum(), keys, strict=True))
    return out


@pytest.mark.parametrize("posed", [None, (True, False, True)])
def test_prope_is_its_definition_even_far_from_the_identity(posed):
    """Only how cameras stand to each other enters; the transformed keys are a thousand times as long as those
    that QK-norm gave.
    """
    rng, grid, H = np.random.default_rng(0), (2, 3), 16
    pose = np.tile(np.eye(4), (3, 1, 1))
    pose[:, :3, :3], pose[:, :3, 3] = rotations(rng, 3), 30 * rng.normal(size=(3, 3))
    q, k, v = (rng.normal(size=(18, H)) for _ in range(3))
    mask = None if posed is None else of(posed)
    views = Views(jnp.asarray(pose[None], jnp.float32), mask, patch_positions(*grid, 0) - 1)
    found = prope_attention(*(jnp.asarray(x[None, :, None], jnp.float32) for x in (q, k, v)), views)
    here = posed or (True,) * 3
    wanted = attended(q, k, v, pose, here, grid)
    rows = np.repeat(here, 6)
    assert max_error(found[0, rows, 0], wanted[rows]) < 2e-4
    assert np.isfinite(found).all()


def test_the_kernels_bound_is_of_the_norms_that_cameras_make(monkeypatch):
    """Keys of QK-norm are 4 long and seen from cameras far away 400: a kernel whose shift is fixed by a bound
    of the first would overflow. Triton's, in its interpreter.
    """
    from pallas_kernels.triton import attention
    from pallas_kernels.triton.config import TuningConfig

    asked = []

    def by_kernel(q, k, v):
        asked.append((q, k, v))
        full = BlockMask.full(1, q.shape[2], q.shape[1], (k.shape[1],), block=(32, 32))
        return attention.block_sparse_attention(q, k, v, full, TuningConfig(32, 32, 4, 2), interpret=True)

    rng, F, grid, H = np.random.default_rng(3), 4, (4, 4), 16
    pose = np.tile(np.eye(4), (F, 1, 1))
    pose[:, :3, :3], pose[:, :3, 3] = rotations(rng, F), 60 * rng.normal(size=(F, 3))
    views = Views(jnp.asarray(pose[None], jnp.float32), None, patch_positions(*grid, 0) - 1)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 64, 2, H)), jnp.bfloat16) for _ in range(3))
    monkeypatch.setattr(injection, "dense_attention", by_kernel)
    found = prope_attention(q, k, v, views)
    length = lambda x: float(jnp.linalg.norm(x.astype(jnp.float32), axis=-1).max())
    seen_q, seen_k, seen_v = asked[0]
    scale = np.log2(np.e) / np.sqrt(H)
    assert (
        2 * scale * length(q) * length(k) < FIXED_SHIFT_RANGE < scale * length(seen_q) * length(seen_k) / 100
    )
    exact = jax.nn.dot_product_attention(*(x.astype(jnp.float32) for x in asked[0]))
    wanted = injection.restore(exact.astype(jnp.bfloat16), views)
    assert (
        max_error(found, wanted) < TOLERANCE["bfloat16"] and np.isfinite(np.asarray(found, np.float32)).all()
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_keys_without_a_camera_weigh_nothing_and_no_camera_at_all_is_finite(dtype):
    rng = np.random.default_rng(1)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 12, 2, 16)), dtype) for _ in range(3))
    posed = of([True, True, False], [False, False, False])
    views = Views(jnp.tile(jnp.eye(4), (2, 3, 1, 1)), posed, patch_positions(2, 2, 0) - 1)
    out = prope_attention(q, k, v, views)
    assert out.dtype == dtype and np.isfinite(np.asarray(out, np.float32)).all()
    other = prope_attention(q, k.at[:, 8:].set(5), v.at[:, 8:].set(-7), views)
    np.testing.assert_array_equal(np.asarray(out[0], np.float32), np.asarray(other[0], np.float32))


# ---- units, conventions


def test_rays_of_K_go_through_the_centres_of_pixels():
    K = jnp.array([[10.0, 0, 4], [0, 20, 3], [0, 0, 1]])
    rays = np.asarray(rays_of(K, 6, 8))
    np.testing.assert_allclose(rays[0, 0], [(0.5 - 4) / 10, (0.5 - 3) / 20, 1], rtol=1e-6)
    np.testing.assert_allclose(rays[5, 7], [(7.5 - 4) / 10, (5.5 - 3) / 20, 1], rtol=1e-6)


def test_neither_the_world_nor_the_unit_of_what_is_given_matters(tiny, images):
    """Depth and poses in another unit and another world are the same conditions."""
    model, params = tiny
    a, rng = known(), np.random.default_rng(5)
    world = np.eye(4)
    world[:3, :3], world[:3, 3] = rotations(rng), rng.normal(size=3)
    pose = np.array(a.world_from_cam)
    pose[..., :3, 3] *= 7
    b = a.replace(depth=7 * a.depth, world_from_cam=np.asarray(world @ pose, np.float32))
    base, other = (jitted(model)(params, images, c) for c in (a, b))
    for name in FIELDS:
        assert max_error(getattr(other, name), getattr(base, name)) < 3 * TOLERANCE["float32"], name


def test_poses_without_depth_are_of_mean_length_1_unless_the_scene_is_at_rest():
    pose = known(frames=3).world_from_cam
    for scale, length in ((5, 1), (1e-3, None)):
        given = np.array(pose)
        given[..., :3, 3] *= scale
        fed = prepare(Conditions(world_from_cam=given), 1, 3, (14, 14))
        lengths = np.linalg.norm(fed.world_from_cam[0, 1:, :3, 3], axis=-1)
        raw = np.linalg.norm((given[0, 1:] - given[0, :1])[:, :3, 3], axis=-1)
        np.testing.assert_allclose(lengths, raw if length is None else raw / raw.mean(), rtol=1e-5)


def test_its_unit_is_the_metre_and_K_is_that_of_its_rays(tmp_path):
    """K without the half pixel by which the official demo's is off; a scene that is metric says so."""
    photographs = load_images(
        [np.zeros((28, 42, 3), np.uint8)] * 2, Pi3X(patch_size=14).image_policy, size=42
    )
    H, W = photographs.pixels.shape[1:3]
    K = np.array([[50.0, 0, 19.5], [0, 60, 15], [0, 0, 1]], np.float32)
    rays = np.asarray(rays_of(jnp.asarray(K), H, W))
    rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    local = rays * np.random.default_rng(0).uniform(1, 5, (1, 2, H, W, 1)).astype(np.float32)
    pose = jnp.tile(jnp.eye(4), (1, 2, 1, 1)).at[0, 1, 0, 3].set(2)
    prediction = Prediction(
        local_points=jnp.asarray(local),
        rays=jnp.broadcast_to(rays, local.shape),
        conf=jnp.ones((1, 2, H, W, 1)),
        camera_poses=pose,
        metric=jnp.array([3.0]),
        made_by=Pi3X,
    )
    scene = to_scene(prediction, photographs)
    assert scene.metric_scale == 1 and set(scene.intrinsics) == {"recovered"}
    np.testing.assert_allclose(scene.K, np.tile(K, (2, 1, 1)), atol=2e-3)
    scene.save(tmp_path)
    assert json.loads((tmp_path / "cameras.json").read_text())["metric_scale"] == 1
    assert Scene.load(tmp_path).metric_scale == 1
    assert to_scene(prediction.replace(metric=None), photographs).metric_scale is None


def test_the_metric_factor_scales_points_and_cameras_and_no_rotation(tiny, images):
    model, params = tiny
    whole = jitted(model)(params, images)
    heads = ("point", "conf", "camera")
    plain = jitted(model.clone(heads=heads))(params, images)
    m = float(whole.metric[0])
    assert plain.metric is None and abs(m - 1) > 1e-3
    for name in ("points", "local_points"):
        assert max_error(getattr(whole, name), m * getattr(plain, name)) < TOLERANCE["float32"], name
    np.testing.assert_array_equal(whole.camera_poses[..., :3], plain.camera_poses[..., :3])
    assert max_error(whole.camera_poses[..., :3, 3], m * plain.camera_poses[..., :3, 3]) < 1e-6
    np.testing.assert_allclose(np.linalg.norm(whole.rays, axis=-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(whole.rays, plain.rays)


# ---- files


def test_heads_in_half_precision_have_the_same_numbers(tiny, images):
    """To float16's rounding; beyond its range the numbers are float32's own."""
    model, params = tiny
    model = model.clone(heads=("point", "conf"))
    half = model.clone(heads_dtype=jnp.float16)

    def inside(factor):  # numbers before the last convolution are larger by it, the output stays
        head = dict(params["params"]["point_head"])
        for k in (0, 1):
            hidden, last = f"output_block_{k}_0", f"output_block_{k}_2"
            head[hidden] = jax.tree.map(lambda x: x * factor, head[hidden])
            head[last] = head[last] | {"kernel": head[last]["kernel"] / factor}
        return {"params": params["params"] | {"point_head": head}}

    for factor, low, high in ((1.0, 1e-7, 5e-3), (1e8, 0.0, 1e-5)):
        full_points, points = (jitted(m)(inside(factor), images).local_points for m in (model, half))
        assert low < max_error(points, full_points) < high


def test_without_conditions_their_part_is_not_read(tiny, images, tmp_path):
    model, params = tiny
    save_params(tmp_path / "x.safetensors", params, model)
    found, few = from_pretrained(tmp_path / "x.safetensors", heads=Pi3X.heads_for(None), dtype="float32")
    gone = set(params["params"]) - set(few["params"])
    assert gone == {"depth_encoder", "depth_emb", "ray_embed", "pose_inject_blocks"}
    assert max_error(jitted(found)(few, images).points, jitted(model)(params, images).points) < 1e-6
    with pytest.raises(InputError, match=r'the part that reads them: load it with "conditions" among its'):
        found.apply(few, images, known())


def test_config_round_trips():
    assert Pi3X.from_config(Pi3X(inject_after=(1, 3)).config()) == Pi3X(inject_after=(1, 3))


# ---- bad input


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(depth=np.ones((1, 4, 40, 42))), r"depth is \[1, 4, 40, 42\], of 1x4 images of 42x42 pixels it"),
        (dict(depth=np.full((1, 4, SIDE, SIDE), -1.0)), "depth of view 0 is negative somewhere"),
        (dict(depth=np.full((1, 4, SIDE, SIDE), np.nan)), "depth of view 0 has NaN or infinity"),
        (dict(depth=np.full((1, 4, SIDE, SIDE), 1e10)), r"depth of view 0 is beyond 1e\+09 somewhere"),
        (dict(K=np.ones((1, 4, 3, 3))), "K of view 0 has no inverse"),
        (dict(K=np.asarray(known().K).swapaxes(-1, -2)), "K of view 0 has no inverse, or another last row"),
        (dict(K=np.asarray(known().K).tolist()), "K must be an array of real numbers, not list"),
        (dict(ray_mask=np.ones((1, 4), int)), "ray_mask must be an array of bool, not int64"),
        (dict(world_from_cam=np.full((1, 4, 4, 4), 2.0)), "world_from_cam of view 0 is no rigid transform"),
        (dict(rays=np.zeros((1, 4, SIDE, SIDE, 3)), K=None), "rays of view 0 must be finite, with z above 0"),
        (dict(rays=np.ones((1, 4, SIDE, SIDE, 3))), "K and rays were given, which say the same"),
        (dict(depth=None, depth_mask=of([1, 1, 1, 1])), "depth_mask was given, but not what it is about"),
        (dict(pose_mask=of([1, 1, 1])), r"pose_mask is \[1, 3\]"),
    ],
)
def test_conditions_that_do_not_fit_get_one_sentence(tiny, images, given, message):
    model, params = tiny
    with pytest.raises(InputError, match=message) as caught:
        model.apply(params, images, known(**given))
    assert caught.value.argument == "conditions"


@pytest.mark.parametrize("far, extent, said", [(5e6, 10, 1), (5e6, 1e5, 0), (5e6, 0, 0), (0, 10, 0)])
def test_a_world_in_which_float32_blurs_the_cameras_is_a_warning(far, extent, said):
    pose = np.tile(np.eye(4), (1, 3, 1, 1))
    pose[0, :, 0, 3] = far + extent * np.array([0, 0.5, 1])
    pose[0, 0, 0, 3] -= 1e7  # whose mask is off
    on = of([0, 1, 1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Conditions(world_from_cam=pose, pose_mask=on).check((1, 3, SIDE, SIDE, 3))
    texts = [str(one.message) for one in caught]
    assert len(texts) == said and all("so far from 0 that float32" in text for text in texts)


def test_what_is_off_may_be_anything(tiny, images):
    depth = np.array(known().depth)
    depth[0, 1] = np.nan
    known(depth=depth, depth_mask=of([1, 0, 1, 1])).check(images.shape)


@pytest.mark.parametrize("off", [0, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("field", ["depth", "K", "rays", "world_from_cam"])
def test_what_is_no_number_and_off_does_not_enter(field, bad, off):
    """The model is fed numbers only, the same of the other views as if that one were not there."""
    values = known(rays=np.ones((1, 4, SIDE, SIDE, 3), np.float32))
    mask = {"depth": "depth_mask", "world_from_cam": "pose_mask"}.get(field, "ray_mask")
    on = np.arange(4) != off
    value = np.array(getattr(values, field))
    value[0, off] = bad
    given = Conditions(**{field: value, mask: on[None]})
    given.check((1, 4, SIDE, SIDE, 3))
    without = jax.tree.map(lambda x: x[:, on], given)
    found, wanted = prepare(given, 1, 4, (SIDE, SIDE)), prepare(without, 1, 3, (SIDE, SIDE))
    for name, x in found._asdict().items():
        if x is not None:
            assert np.isfinite(x).all(), name
            seen = x if name == "unit" else x[:, on]
            np.testing.assert_allclose(seen, getattr(wanted, name), rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "frames, mask", [pytest.param(1, None, marks=pytest.mark.slow), (4, of([0, 1, 0, 0]))]
)
def test_one_posed_view_alone_is_a_warning(tiny, views, frames, mask):
    model, params = tiny
    images = views(frames, SIDE, SIDE)[None]
    given = known(frames=frames, depth=None, K=None, pose_mask=mask)
    with pytest.warns(UserWarning, match="one posed view alone says nothing"):
        given.check(images.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = jax.jit(lambda p, x: model.apply(p, x, given))(params, images)
    plain = jitted(model)(params, images)
    assert max_error(found.points, plain.points) < TOLERANCE["float32"]


def test_what_is_no_conditions_or_no_model_gets_one_sentence(tiny, images):
    model, params = tiny
    with pytest.raises(InputError, match=r"conditions must be fv.Conditions, not ndarray"):
        model.apply(params, images, np.zeros(3))
    for other in (tiny_model("vggt"), tiny_model("pi3")):
        with pytest.raises(InputError, match="conditions were given, but a (VGGT|Pi3) takes none: Pi3X does"):
            jax.eval_shape(other.apply, other.abstract_params(), images, known())
    with pytest.raises(InputError, match=r"inject_after=\(2,\) must be odd numbers below 12"):
        model.clone(inject_after=(2,)).apply(params, images)
    with pytest.raises(InputError, match=r"heads=.'pose',.: .'pose'. is none of"):
        model.clone(heads=("pose",)).apply(params, images)


def test_poses_are_inverted_rigidly():
    pose = known(frames=2, spread=100.0).world_from_cam[0]
    np.testing.assert_allclose(invert_se3(pose) @ pose, np.tile(np.eye(4), (2, 1, 1)), atol=1e-4)
