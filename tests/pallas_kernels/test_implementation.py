"""The registry of implementations: order, names, reasons, what a request shows, and sharded arrays."""

import argparse
import dataclasses
import logging
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pallas_kernels import (
    BlockMask,
    Implementation,
    TuningConfig,
    api,
    block_sparse_attention,
    compiles_in_threads,
    cudnn_serves,
    faster_dense,
    implementation,
    pooled_block_mask,
    register,
    registered,
    triton,
)
from pallas_kernels.implementation import ATTENTION, MASK, Device, Request, choose, find, names, only

pytestmark = pytest.mark.every_jax
ROOT = Path(__file__).parents[2]
HOPPER = Device("gpu", "NVIDIA H100 80GB HBM3", "9.0")
REQUEST = Request(ATTENTION, 1, 8192, 8192, 16, 64, np.dtype(jnp.bfloat16), (128, 64), HOPPER)
needs_jax_011 = pytest.mark.skipif(
    jax.__version_info__ < (0, 11), reason="Mosaic GPU kernels need jax >= 0.11"
)


class Toy(Implementation):
    """Attention alone, of at most 40 queries in float32; its answer is recognisable."""

    name = "toy"
    operations = (ATTENTION,)
    dtypes = ("float32",)
    partitioned = False
    compiles_in_threads = False

    def why_not(self, request):
        return super().why_not(request) or (
            f"it takes 40 queries, not {request.T}" if request.T > 40 else None
        )

    def attend(self, q, k, v, block_mask, config=None):
        return jnp.full_like(q, 7)


@pytest.fixture
def toy():
    api._log_once.cache_clear()
    with registered(Toy()):
        yield
    assert "toy" not in names()


def arrays(T, dtype=jnp.float32):
    q = jnp.ones((1, T, 1, 8), dtype)
    return q, q, q, BlockMask.full(1, 1, T, (T,), (16, 8))


def test_the_first_that_can_serve_serves_and_is_logged_once(toy, caplog):
    with caplog.at_level(logging.INFO, "pallas_kernels"):
        for _ in range(2):
            assert (block_sparse_attention(*arrays(40)) == 7).all()
        assert (block_sparse_attention(*arrays(41)) != 7).all()  # too long for it
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == "block_sparse_attention: implementation 'toy'" and len(messages) == 2
    assert "implementation 'xla'" in messages[1]


def test_a_named_one_serves_or_says_why_not(toy):
    assert (block_sparse_attention(*arrays(8), implementation="toy") == 7).all()
    for bad, reason in (
        (arrays(41), "it takes 40 queries, not 41"),
        (arrays(8, jnp.bfloat16), "it takes float32, not bfloat16"),
    ):
        with pytest.raises(NotImplementedError, match=f"^'toy' cannot do this: {reason}$"):
            block_sparse_attention(*bad, implementation="toy")
    q, k, *_ = arrays(8)
    with pytest.raises(
        NotImplementedError, match="'toy' cannot do this: it does not compute pooled_block_mask"
    ):
        pooled_block_mask(q, k, keep_count=1, implementation="toy")
    assert pooled_block_mask(q, k, keep_count=1).kv_num_blocks.min() > 0


def test_it_is_gone_when_the_with_statement_ends():
    before = names()
    with pytest.raises(KeyError), registered(Toy(), before="xla"):
        assert names() == (*before[: before.index("xla")], "toy", *before[before.index("xla") :])
        raise KeyError
    assert names() == before
    with pytest.raises(
        ValueError, match=r"implementation='toy' must be None or one of \('mosaic_sm90', 'triton', 'xla'"
    ):
        block_sparse_attention(*arrays(8), implementation="toy")


def test_a_name_is_taken_once(toy):
    with pytest.raises(ValueError, match="there is an implementation 'toy' already"):
        register(Toy())
    with pytest.raises(ValueError, match="before='cuda' must be None or one of"):
        register(type("Other", (Toy,), {"name": "other"})(), before="cuda")
    assert names()[0] == "toy" and "other" not in names()


def test_a_kernel_whose_dtype_is_not_taken_does_not_forbid_threads(toy):
    on_cpu = jax.default_backend() == "cpu"
    assert compiles_in_threads(jnp.bfloat16) == on_cpu and not compiles_in_threads(jnp.float32)


def test_sharded_arrays_are_refused_by_what_xla_cannot_partition(toy):
    request = Request.of(ATTENTION, *arrays(8)[:2], (16, 8))
    assert not request.sharded and choose(request)[0].name == "toy"
    chosen, reasons = choose(dataclasses.replace(request, sharded=True))
    assert chosen.name == "xla"
    assert reasons[0].endswith("sharded over several devices: call it inside jax.shard_map")


SHARDED = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from pallas_kernels.implementation import is_sharded

x = jnp.ones((4, 4))
seen = []
see = lambda x: (seen.append(is_sharded(x)), x)[1]
for kind in (AxisType.Explicit, AxisType.Auto):
    mesh = jax.make_mesh((2,), ("b",), axis_types=(kind,))
    spread = jax.device_put(x, NamedSharding(mesh, P("b")))
    assert is_sharded(spread) and is_sharded(x, spread) and not is_sharded(x)
    jax.jit(see)(spread)
    jax.jit(jax.vmap(see))(spread)
    jax.jit(jax.shard_map(see, mesh=mesh, in_specs=P("b"), out_specs=P("b")))(spread)
    one = jax.make_mesh((1,), ("b",), axis_types=(kind,), devices=jax.devices()[:1])
    jax.jit(see)(jax.device_put(x, NamedSharding(one, P("b"))))
    jax.jit(lambda x: see(x))(x)
print(seen)
"""


def test_a_mesh_is_seen_where_arrays_are_not_local():
    """Under jit, in both kinds of meshes; not inside shard_map, nor on one device."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    command = [sys.executable, "-c", SHARDED]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(2 * [True, True, False, False, False])


def test_arrays_on_explicit_axes_are_for_shard_map():
    mesh = jax.make_mesh((1,), ("b",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:1])
    q, k, v, mask = arrays(8)
    spread = jax.device_put((q, k, v), NamedSharding(mesh, PartitionSpec("b")))
    attend = lambda *qkv: block_sparse_attention(*qkv, mask, implementation="xla")
    for outside in (attend, jax.jit(attend)):
        with pytest.raises(
            NotImplementedError, match="explicit axes of a mesh: call it inside jax.shard_map"
        ):
            outside(*spread)
    batch = PartitionSpec("b")
    inside = jax.jit(jax.shard_map(attend, mesh=mesh, in_specs=batch, out_specs=batch))
    np.testing.assert_array_equal(inside(*spread), attend(q, k, v))


def test_the_default_device_is_where_traced_arrays_run(monkeypatch):
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        assert implementation.device_of() == Device("cpu", cpu.device_kind)
    with jax.default_device("cpu"):
        assert implementation.device_of().platform == "cpu"
    on_cpu = jax.device_put(1.0, cpu)
    monkeypatch.setattr(jax, "local_devices", lambda backend=None: [pytest.fail("the array says it")])
    assert implementation.device_of(on_cpu).platform == "cpu"


# The Hopper kernels, as far as their answers go


@needs_jax_011
@pytest.mark.parametrize(
    "change, reason",
    [
        ({}, None),
        ({"operation": MASK}, None),
        ({"dtype": np.dtype(jnp.float16), "H": 128}, None),
        ({"dtype": np.dtype(np.float32)}, "takes bfloat16 and float16, not float32"),
        ({"H": 129}, "head_dim of at most 128, not 129"),
        ({"block": (128, 60)}, "multiple of 8, not 60"),
        ({"block": (128, 512)}, None),
        ({"block": (128, 264)}, "no step of at most 256 keys holds key blocks of 264 or parts of them"),
        ({"sharded": True}, "call it inside jax.shard_map"),
        ({"device": Device("gpu", "NVIDIA A100-SXM4-40GB", "8.0")}, "a Hopper GPU"),
        ({"device": Device("gpu", "NVIDIA B200", "10.0")}, "a Hopper GPU"),
        ({"device": Device("gpu", "AMD Instinct MI300X", "gfx942")}, "a Hopper GPU"),
        ({"device": Device("cpu", "cpu")}, "a Hopper GPU"),
        ({"config": TuningConfig(4, 128, 2)}, "warpgroups=4 must be 1, 2 or 3"),
        ({"config": "another implementation's"}, None),
    ],
)
def test_the_hopper_kernels_say_what_they_take(change, reason):
    found = find("mosaic_sm90").why_not(dataclasses.replace(REQUEST, **change))
    assert found is None if reason is None else reason in found


def test_the_hopper_kernels_need_a_new_jax(monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 2))
    assert "it needs jax >= 0.11 and a Hopper GPU" in find("mosaic_sm90").why_not(REQUEST)


def test_long_dense_attention_is_faster_by_the_hopper_kernel(monkeypatch):
    """In bfloat16, at a head dim of 64, from 8,192 keys on, for however many queries."""
    monkeypatch.setattr(implementation, "device_of", lambda x=None: HOPPER)
    tokens = lambda n, H=64, dtype=jnp.bfloat16: jax.ShapeDtypeStruct((1, n, 16, H), dtype)
    fast = "mosaic_sm90" if jax.__version_info__ >= (0, 11) else None
    assert faster_dense(tokens(8192), tokens(8192)) == fast
    assert faster_dense(tokens(250), tokens(8192)) == fast
    assert faster_dense(tokens(8192), tokens(8191)) is None
    assert faster_dense(tokens(8192, 128), tokens(8192, 128)) is None
    assert faster_dense(tokens(8192, dtype=jnp.float16), tokens(8192, dtype=jnp.float16)) is None
    assert compiles_in_threads(jnp.float32) and compiles_in_threads(jnp.bfloat16) == (fast is None)
    monkeypatch.setattr(implementation, "device_of", lambda x=None: Device("gpu", "another", "8.0"))
    assert faster_dense(tokens(8192), tokens(8192)) is None and compiles_in_threads(jnp.bfloat16)


def test_a_config_of_another_implementation_is_refused_by_name(toy, monkeypatch):
    monkeypatch.setattr(Toy, "config_type", TuningConfig)
    with pytest.raises(TypeError, match="config=3 must be a pallas_kernels.mosaic_sm90.config.TuningConfig"):
        block_sparse_attention(*arrays(8), implementation="toy", config=3)
    assert (block_sparse_attention(*arrays(8), implementation="xla", config=3) != 7).all()  # nothing to tune


# The Triton kernels, as far as their answers go

ADA = Device("gpu", "NVIDIA L40S", "8.9")
PORTABLE = dataclasses.replace(REQUEST, device=ADA)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({}, None),
        ({"operation": MASK}, None),
        ({"dtype": np.dtype(jnp.float16), "H": 128}, None),
        ({"block": (128, 512)}, None),
        ({"block": (64, 32)}, None),
        ({"device": HOPPER}, None),
        ({"device": Device("gpu", "NVIDIA GeForce RTX 5090", "12.0")}, None),
        ({"dtype": np.dtype(np.float32)}, "takes bfloat16 and float16, not float32"),
        ({"H": 129}, "head_dim of at most 128, not 129"),
        ({"block": (128, 60)}, "part of, key blocks of 60"),
        ({"sharded": True}, "call it inside jax.shard_map"),
        (
            {"device": Device("gpu", "Tesla T4", "7.5")},
            "compute capability 8.0 or higher; this is 'Tesla T4' (7.5)",
        ),
        ({"device": Device("gpu", "AMD Instinct MI300X", "gfx942")}, "compute capability 8.0 or higher"),
        ({"device": Device("cpu", "cpu")}, "an NVIDIA GPU"),
        ({"config": triton.TuningConfig(48, 64, 4, 3)}, "rows=48 must be a power of two"),
        ({"config": "another implementation's"}, None),
    ],
)
def test_the_triton_kernels_say_what_they_take(change, reason):
    found = find("triton").why_not(dataclasses.replace(PORTABLE, **change))
    assert found is None if reason is None else reason in found


def test_hopper_keeps_its_own_kernels_and_other_cards_take_the_portable_ones():
    """... which a Hopper GPU takes for what its own do not serve."""
    served_by = lambda **change: choose(dataclasses.replace(REQUEST, **change))[0].name
    hoppers = "mosaic_sm90" if jax.__version_info__ >= (0, 11) else "triton"
    for operation in (MASK, ATTENTION):
        assert served_by(operation=operation) == hoppers
        assert served_by(operation=operation, device=ADA) == "triton"
        assert served_by(operation=operation, device=Device("gpu", "Tesla T4", "7.5")) == "xla"
        assert served_by(operation=operation, device=ADA, dtype=np.dtype(np.float32)) == "xla"
    assert served_by(block=(128, 512)) == hoppers
    assert served_by(block=(128, 264)) == "xla"
    assert served_by(block=(128, 1024), H=128) == hoppers


def test_a_jax_without_the_triton_backend_is_said(monkeypatch):
    def gone(name):
        raise ImportError("cannot import name 'triton'")

    triton._import_error.cache_clear()
    monkeypatch.setattr(triton, "import_module", gone)
    assert "has no Triton backend of Pallas as it knows it: cannot import" in find("triton").why_not(PORTABLE)
    assert choose(PORTABLE)[0].name == "xla"
    triton._import_error.cache_clear()


@needs_jax_011
def test_the_hopper_kernel_runs_with_the_config_that_was_measured(monkeypatch):
    """... of what it rounds its blocks up to, or with the one that is given."""
    from pallas_kernels.mosaic_sm90 import attention

    monkeypatch.setattr(implementation, "device_of", lambda x=None: HOPPER)
    monkeypatch.setattr(attention, "_device", lambda: argparse.Namespace(core_count=132))
    taken = []

    def launch(q, k, v, mask, *, config, **_):
        taken.append(config)
        return [q]

    monkeypatch.setattr(attention, "_launch", launch)
    q = jnp.ones((1, 300, 2, 40), jnp.bfloat16)
    for block in ((128, 64), (150, 64)):
        mask = BlockMask.full(1, 2, 300, (300,), block)
        assert jax.jit(block_sparse_attention)(q, q, q, mask).shape == q.shape
    given = TuningConfig(1, 64, 2)
    block_sparse_attention(q, q, q, mask, config=given)
    assert taken == [TuningConfig(2, 192, 3), TuningConfig(3, 128, 3), given]
    with pytest.raises(
        NotImplementedError, match="'mosaic_sm90' cannot do this: stages=1 must be at least 2"
    ):
        block_sparse_attention(
            q, q, q, mask, implementation="mosaic_sm90", config=dataclasses.replace(given, stages=1)
        )


def test_only_some_are_tried_for_a_while():
    before = names()
    with only("triton"):
        assert names() == ("triton", "xla", "reference")
    with only():
        assert names() == ("xla", "reference")
    assert names() == before
    with pytest.raises(ValueError, match="must be None or one of"), only("cuda"):
        pass
    assert names() == before


def test_cudnn_serves_16_bits_on_nvidias_cards_from_ampere_on(monkeypatch):
    half, full = (jax.ShapeDtypeStruct((1, 2, 1, 64), dtype) for dtype in (jnp.bfloat16, jnp.float32))
    assert not cudnn_serves(half)
    cards = [("NVIDIA A100", "8.0", True), ("Tesla V100", "7.0", False), ("NVIDIA T4", "7.5", False)]
    for kind, capability, served in [*cards, ("AMD Instinct MI300X", "gfx942", False)]:
        monkeypatch.setattr(implementation, "device_of", lambda _, k=kind, c=capability: Device("gpu", k, c))
        assert cudnn_serves(half) == served and not cudnn_serves(full)
