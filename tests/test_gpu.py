"""On an NVIDIA GPU (`pytest -m gpu`; the full size apart: `-m "gpu and not weights"`): the same functions,
cuDNN and bfloat16.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastvggt_jax import Scene, Sparsity, from_pretrained, load_images
from fastvggt_jax.attention import dense_attention
from fastvggt_jax.models import injection
from fastvggt_jax.models.injection import Views, prope_attention
from fastvggt_jax.models.rope import patch_positions
from fastvggt_jax.pipeline import Settings, reconstruct
from fastvggt_jax.pretrained import BUNDLED
from fastvggt_jax.sharding import frames_mesh
from pallas_kernels import BlockMask, Lengths, block_sparse_attention, pooled_block_mask
from pallas_kernels.implementation import device_of, find
from tests.conftest import TOLERANCE, max_error
from tests.parity import run_case
from tests.parity.goldens import Goldens, images_of, load_model
from tests.parity.models import sparsity_of

pytestmark = pytest.mark.gpu
GOLDENS = Goldens()
MEDIAN = 3e-2  # median relative error of bfloat16 against the float32 goldens


def median_errors(name: str, workdir=None) -> dict[str, float]:
    """Median relative error of each output in bfloat16, as the model runs by default."""
    case, golden = GOLDENS.case(name), GOLDENS.load(name)
    model, params = load_model(case["model"], case["checkpoint_seed"], GOLDENS.folder, workdir)
    model = model.clone(dtype=jnp.bfloat16, sparsity=sparsity_of(case), heads=("camera", "depth", "point"))
    params = {"params": {k: v for k, v in params["params"].items() if k != "track_head"}}
    pred = jax.jit(model.apply)(params, images_of(golden))
    s = case["pixel_stride"]
    mine = {
        "camera.pose_enc.3": pred.pose_enc,
        "depth.depth": pred.depth[:, :, ::s, ::s],
        "depth.conf": pred.depth_conf[:, :, ::s, ::s],
        "point.world_points": pred.world_points[:, :, ::s, ::s],
        "point.conf": pred.world_points_conf[:, :, ::s, ::s],
    }
    return {k: relative_median(np.asarray(v), golden[k]) for k, v in mine.items() if k in golden}


def relative_median(x: np.ndarray, golden: np.ndarray) -> float:
    nonzero = golden != 0  # the relu of a field of view
    assert np.isfinite(x).all()
    return float(np.median(np.abs(x[nonzero] / golden[nonzero] - 1)))


@pytest.mark.parametrize("name", [n for n in GOLDENS.names() if n.startswith("vggt_tiny")])
def test_bfloat16_tiny(name):
    errors = median_errors(name)
    assert max(errors.values()) < MEDIAN, errors


@pytest.mark.weights
@pytest.mark.parametrize("name", [n for n in GOLDENS.names() if n.startswith("full_vggt")])
def test_bfloat16_full_size(name, workdir):
    errors = median_errors(name, workdir)
    print(name, {k: f"{v:.2e}" for k, v in errors.items()})
    assert max(errors.values()) < MEDIAN, errors


@pytest.mark.parametrize("name", ["vggt_tiny_hd64_b2n2_56x84", "sparse_vggt_tiny_84x112_q32k16_r50c70"])
def test_float32_is_the_reference_here_too(name):
    """Without TF32 the GPU computes what the CPU does, masks included."""
    with jax.default_matmul_precision("highest"):
        rows = GOLDENS.rows(name, run_case(GOLDENS, name))
    assert not [(stage, error) for stage, error, limit in rows if not error <= limit]


@pytest.mark.parametrize(
    "T, S, dtype", [(325, 325, jnp.bfloat16), (50, 1377, jnp.bfloat16), (1374, 1374, jnp.float16)]
)
def test_dense_attention_takes_any_length(T, S, dtype):
    q, k, v = (
        jax.random.normal(key, (2, n, 3, 64), dtype)
        for key, n in zip(jax.random.split(jax.random.key(0), 3), (T, S, S), strict=True)
    )
    exact = jax.nn.dot_product_attention(*(x.astype(jnp.float32) for x in (q, k, v)), implementation="xla")
    assert max_error(jax.jit(dense_attention)(q, k, v), exact) < 1e-2


@pytest.mark.parametrize("T, S", [(261, 261), (69, 70), (64, 64)])
def test_dense_attention_has_a_derivative_at_any_length(T, S):
    keys = jax.random.split(jax.random.key(0), 3)
    qkv = [
        jax.random.normal(key, (2, n, 4, 64), jnp.bfloat16) for key, n in zip(keys, (T, S, S), strict=True)
    ]
    squares = lambda attend: lambda *qkv: jnp.square(attend(*qkv).astype(jnp.float32)).sum()
    ours = jax.jit(jax.grad(squares(dense_attention), (0, 1, 2)))(*qkv)
    exact = jax.grad(squares(jax.nn.dot_product_attention), (0, 1, 2))(*(x.astype(jnp.float32) for x in qkv))
    for mine, other in zip(ours, exact, strict=True):
        assert (
            max_error(mine, other) < 2 * TOLERANCE["bfloat16"]
        )  # squared: the output's rounding comes in twice


def test_block_sparse_attention():
    q, k, v = (
        jax.random.normal(key, (1, 1000, 4, 64), jnp.bfloat16)
        for key in jax.random.split(jax.random.key(0), 3)
    )
    dense = jax.random.bernoulli(jax.random.key(1), 0.3, (1, 4, 8, 16)).at[..., 0].set(True)
    mask = BlockMask.from_dense(dense, 1000, (1000,), (128, 64))
    exact = block_sparse_attention(
        *(x.astype(jnp.float32) for x in (q, k, v)), mask, implementation="reference"
    )
    assert max_error(jax.jit(block_sparse_attention)(q, k, v, mask), exact) < 1e-2


@pytest.mark.parametrize("kernel", ["mosaic_sm90", "triton"])
@pytest.mark.parametrize("T", [1000, 65536, 280_000, 600_000])  # rows of scores in registers and not
@pytest.mark.parametrize("cdf_threshold", [None, 0.9])
def test_the_mask_kernel_keeps_what_xla_keeps(T, cdf_threshold, kernel):
    if reason := find(kernel).why_not_on(device_of()):
        pytest.skip(reason)
    q, k = (
        jax.random.normal(key, (1, T, 4, 64), jnp.bfloat16) for key in jax.random.split(jax.random.key(0))
    )
    keep = -(-T // 64) // 4
    ours, theirs = (
        jax.jit(
            lambda q, k, n, name=name: pooled_block_mask(
                q, k, keep_count=n, cdf_threshold=cdf_threshold, kv_runs=(T, 500), implementation=name
            )
        )(q, k, keep)
        for name in (kernel, "xla")
    )
    assert (jax.lax.population_count(ours.kv_bits ^ theirs.kv_bits).sum() / theirs.kv_num_blocks.sum()) < 1e-4
    assert (ours.kv_num_blocks >= keep + 8).all()
    if cdf_threshold is None:
        assert (ours.kv_num_blocks == keep + 8).mean() > 0.999  # more only where blocks tie


@pytest.mark.parametrize("far, unposed", [(1.0, 0), (30.0, 0), (1.0, 2)])
def test_pose_injection_is_exact_attention_of_what_cameras_make_of_it(far, unposed):
    """Of enough keys for the Hopper kernel, whose shift is bound by the norms that it is given; with views
    without a camera by cuDNN, which does not see these.
    """
    F, grid = 10, (30, 30)
    rng, T = np.random.default_rng(0), F * grid[0] * grid[1]
    pose = np.tile(np.eye(4, dtype=np.float32), (1, F, 1, 1))
    pose[..., :3, :3] = np.linalg.qr(rng.normal(size=(1, F, 3, 3)))[0]
    pose[..., :3, :3] *= np.sign(np.linalg.det(pose[..., :3, :3]))[..., None, None]
    pose[..., :3, 3] = far * rng.normal(size=(1, F, 3))
    q, k, v = (
        jax.random.normal(key, (1, T, 2, 64), jnp.bfloat16) for key in jax.random.split(jax.random.key(0), 3)
    )
    views = Views(jnp.asarray(pose), None, patch_positions(*grid, 0) - 1)
    kept = T - unposed * grid[0] * grid[1]
    posed = jnp.arange(F)[None] < F - unposed if unposed else None
    found = jax.jit(prope_attention)(q, k, v, views._replace(posed=posed))
    seen_q, seen_k, seen_v = (x.astype(jnp.float32) for x in injection._seen_from(q, k, v, views))
    with jax.default_matmul_precision("highest"):
        exact = jax.nn.dot_product_attention(seen_q, seen_k[:, :kept], seen_v[:, :kept], implementation="xla")
    wanted = injection.restore(exact.astype(jnp.bfloat16), views)
    assert np.isfinite(np.asarray(found, np.float32)).all()
    assert max_error(found[:, :kept], wanted[:, :kept]) < TOLERANCE["bfloat16"]


def test_nothing_dropped_is_dense_in_bfloat16():
    model, params = load_model("vggt_tiny_hd64")
    model = model.clone(dtype=jnp.bfloat16, heads=("camera", "depth"))
    images = jax.random.uniform(jax.random.key(0), (1, 3, 70, 70, 3))
    dense = jax.jit(model.apply)(params, images)
    sparse = jax.jit(model.clone(sparsity=Sparsity(sparse_ratio=0.0, block=(16, 8))).apply)(params, images)
    assert np.median(np.abs(sparse.depth / dense.depth - 1)) < TOLERANCE["bfloat16"]


@pytest.mark.parametrize("T, S", [(1000, 1000), (90, 9000), (9000, 9000)])
def test_dense_attention_to_the_keys_that_count(T, S):
    """By cuDNN and by our kernel, one program for all lengths. What does not count stays finite."""
    q, k, v = (
        jax.random.normal(key, (2, n, 3, 64), jnp.bfloat16)
        for key, n in zip(jax.random.split(jax.random.key(0), 3), (T, S, S), strict=True)
    )
    attend = jax.jit(dense_attention)
    for queries, keys in ((T, S), (T - 7, S - 9), (T // 2, 1)):
        out = attend(q, k, v, Lengths(jnp.int32(queries), (jnp.int32(keys),)))
        some = (x.astype(jnp.float32) for x in (q[:, :queries], k[:, :keys], v[:, :keys]))
        exact = jax.nn.dot_product_attention(*some, implementation="xla")
        assert np.isfinite(np.asarray(out, np.float32)).all()
        assert max_error(out[:, :queries], exact) < 1e-2


MINI_SPARSE = Sparsity(sparse_ratio=0.5, block=BUNDLED["mini"].block)


def photographs(count):
    """The first of those that `mini` comes with."""
    return [BUNDLED["mini"].path.parent / "views" / f"{i}.jpg" for i in range(count)]


@pytest.mark.parametrize("sparsity", [None, MINI_SPARSE])
def test_one_program_for_a_range_of_views(sparsity):
    """Of eight of which seven and five count; in bfloat16 apart from their own program by no more
    than the roundings of both.
    """
    heads = ("camera", "depth", "point")
    model, params = from_pretrained("mini", heads=heads, sparsity=sparsity, param_dtype=jnp.float32)
    pixels = load_images(photographs(8), model.image_policy).pixels[None]

    def programs(dtype):
        apply = model.clone(dtype=dtype).apply
        filled = jax.jit(lambda params, pixels, count: apply(params, pixels, frames=count))
        names = ("pose_enc", "depth", "world_points")
        of = lambda found, n: {name: np.asarray(getattr(found, name))[:, :n] for name in names}
        alone = jax.jit(apply)
        return (
            lambda n: of(alone(params, pixels[:, :n]), n),
            lambda n: of(filled(params, pixels, jnp.int32(n)), n),
        )

    def apart(a, b):
        return {name: np.linalg.norm(a[name] - b[name]) / np.linalg.norm(b[name]) for name in a}

    with jax.default_matmul_precision("highest"):
        alone, filled = programs(jnp.float32)
        exact = {n: alone(n) for n in (7, 5)}
        in_float32 = {n: apart(filled(n), exact[n]) for n in exact}
    alone, filled = programs(jnp.bfloat16)
    for n in exact:
        one = alone(n)
        rounding, between = apart(one, exact[n]), apart(filled(n), one)
        print(n, {"float32": in_float32[n], "bfloat16 from float32": rounding, "filled up": between})
        assert max(in_float32[n].values()) < 1e-4
        # Both are rounded, each in its own way: another shape, another order of sums, other near ties.
        assert all(between[name] < 2 * rounding[name] for name in rounding)


@pytest.mark.parametrize("how", [{"bucket": True}, {"devices": "all"}])
def test_other_programs_of_the_same_photographs_bring_back_the_same(tmp_path, how):
    if how == {"devices": "all"} and len(jax.devices()) < 2:
        pytest.skip("needs two GPUs")

    def run(name, **how):
        out = tmp_path / name
        settings = Settings(photographs(7), "mini", out, dtype="float32", formats=["scene"], **how)
        with jax.default_matmul_precision("highest"):
            reconstruct(settings, lambda name: contextlib.nullcontext())
        return Scene.load(out)

    one, other = run("one"), run("other", **how)
    for name in ("cam_from_world", "depth", "points"):
        assert max_error(getattr(other, name), getattr(one, name)) < 1e-4


def test_chunks_are_joined(tmp_path):
    """Of results in the host's memory, from which JAX itself computes nothing."""
    settings = Settings(photographs(8), "mini", tmp_path / "out", chunk=5, overlap=2, formats=["cameras"])
    report = reconstruct(settings, lambda name: contextlib.nullcontext())
    (residual,) = report["sequence"]["residuals"]
    assert report["sequence"]["chunks"] == [[0, 4], [3, 7]] and residual < 0.1


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("sparsity", [None, MINI_SPARSE])
def test_two_gpus_are_one_but_for_the_order_of_rounding(sparsity, low_memory):
    """Seven views, of which one GPU has four and the other three. In bfloat16 two GPUs are as near to one as
    that one is to float32, whose rounding the two share.
    """
    if len(jax.devices()) < 2:
        pytest.skip("needs two GPUs")
    heads = ("camera", "depth", "point")
    model, params = from_pretrained("mini", heads=heads, sparsity=sparsity, param_dtype=jnp.float32)
    pixels = load_images(photographs(7), model.image_policy).pixels[None]

    def run(dtype, devices):
        apply = model.clone(dtype=dtype, low_memory=low_memory and devices > 1).apply
        if devices == 1:
            found = jax.jit(apply)(params, pixels)
        else:
            with jax.set_mesh(frames_mesh(devices)):
                found = jax.jit(lambda params, pixels: apply(params, pixels))(params, pixels)
        return {name: np.asarray(getattr(found, name)) for name in ("pose_enc", "depth", "world_points")}

    def apart(a, b):
        return {name: np.linalg.norm(a[name] - b[name]) / np.linalg.norm(b[name]) for name in a}

    with jax.default_matmul_precision("highest"):
        exact = run(jnp.float32, 1)
        in_float32 = apart(run(jnp.float32, 2), exact)
    one = run(jnp.bfloat16, 1)
    rounding, between = apart(one, exact), apart(run(jnp.bfloat16, 2), one)
    print({"float32": in_float32, "bfloat16, one GPU from float32": rounding, "two from one": between})
    assert max(in_float32.values()) < 1e-4
    assert all(between[name] < rounding[name] for name in rounding)
