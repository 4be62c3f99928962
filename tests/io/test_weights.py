"""The native weight file: written as a stream, loaded strictly, every damage named in one sentence."""

import json
import os
import re
import resource
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from fastvggt_jax.errors import Error, InputError, WeightsError
from fastvggt_jax.io import weights
from fastvggt_jax.io.tensors import differences, open_safetensors, write_safetensors
from fastvggt_jax.io.weights import abstract_tensors, save_params
from fastvggt_jax.models.vggt import VGGT
from fastvggt_jax.pretrained import from_pretrained, read_model, weight_file

SMALL = {
    "img_size": 28,
    "embed_dim": 32,
    "encoder_depth": 2,
    "encoder_num_heads": 2,
    "depth": 4,
    "num_heads": 2,
    "taps": (0, 1, 2, 3),
    "camera_trunk_depth": 2,
    "camera_num_heads": 2,
    "dpt_features": 16,
    "dpt_level_channels": (8, 8, 8, 8),
    "heads": ("camera", "depth"),
}


@pytest.fixture(scope="module")
def model():
    return VGGT(**SMALL)


@pytest.fixture(scope="module")
def params(model):
    rng = np.random.default_rng(0)
    flat = {k: rng.standard_normal(s.shape, np.float32) for k, s in abstract_tensors(model).items()}
    return {"params": traverse_util.unflatten_dict(flat, sep="/")}


@pytest.fixture(scope="module")
def saved(model, params, tmp_path_factory):
    path = tmp_path_factory.mktemp("native") / "small.safetensors"
    save_params(path, params, model, source="a test", license="none")
    return path


def flat(params):
    return traverse_util.flatten_dict(params["params"], sep="/")


def rewrite(saved, path, tensors=None, **metadata):
    """A copy of a native file with some tensors changed (None: left out) and some metadata replaced."""
    with safe_open(saved, "np") as f:
        old = f.metadata()
    new = load_file(saved) | (tensors or {})
    save_file({k: v for k, v in new.items() if v is not None}, path, old | metadata)
    return path


# --- the stream
# -------------------------------------------------------------------------------------------------


def test_written_stream_is_what_safetensors_reads(tmp_path):
    rng = np.random.default_rng(1)
    tensors = {
        "half": rng.standard_normal(3).astype(np.float16),
        "wide": rng.standard_normal((4, 5)).astype(np.float32).T,  # not contiguous
        "brain": rng.standard_normal((3, 2, 2)).astype(ml_dtypes.bfloat16),
        "scalar": np.float32(7).reshape(()),
    }
    specs = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in tensors.items()}
    size = write_safetensors(tmp_path / "a", specs, lambda name: [tensors[name]], {"key": "value"})
    assert size == (tmp_path / "a").stat().st_size
    read = load_file(tmp_path / "a")
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        np.testing.assert_array_equal(read[name], tensor)
    assert safe_open(tmp_path / "a", "np").metadata() == {"key": "value"}
    raw = (tmp_path / "a").read_bytes()
    header_size = int.from_bytes(raw[:8], "little")
    assert header_size % 8 == 0
    for name, entry in json.loads(raw[8 : 8 + header_size]).items():  # for readers that map the file
        assert name == "__metadata__" or entry["data_offsets"][0] % tensors[name].dtype.itemsize == 0


def test_stack_is_written_layer_by_layer(tmp_path):
    layer = 1 << 20  # bytes
    spec = {"stack": jax.ShapeDtypeStruct((32, layer // 4), jnp.dtype("float32"))}

    def layers(name):
        for i in range(32):
            yield np.full(layer // 4, i, np.float32)

    tracemalloc.start()
    write_safetensors(tmp_path / "a", spec, layers, {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * layer
    np.testing.assert_array_equal(load_file(tmp_path / "a")["stack"][:, 0], np.arange(32))


@pytest.mark.parametrize(
    "chunks",
    [[np.zeros(3, np.float32)], [np.zeros(5, np.float32)], [np.zeros(4, np.float16)]],
    ids=["short", "long", "dtype"],
)
def test_data_unlike_their_announcement_are_not_written(tmp_path, chunks):
    with pytest.raises((ValueError, TypeError), match="weight was announced as float32"):
        write_safetensors(
            tmp_path / "a", {"weight": jax.ShapeDtypeStruct((4,), jnp.float32)}, lambda name: chunks, {}
        )
    assert os.listdir(tmp_path) == []


def test_full_disk_leaves_the_old_file_and_says_so(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    spec = {"weight": jax.ShapeDtypeStruct((1 << 20,), jnp.dtype("float32"))}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (1 << 20, hard)
    )  # the kernel refuses to let a file grow further
    try:
        with pytest.raises(
            OSError, match=r"could not write .*a\.safetensors \(0\.00 GB\).*nothing was left behind"
        ):
            write_safetensors(path, spec, lambda name: [np.zeros(1 << 20, np.float32)], {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert path.read_bytes() == b"old"


def test_integers_are_no_weights(tmp_path):
    with pytest.raises(ValueError, match="parameter steps is int32"):
        write_safetensors(tmp_path / "a", {"steps": jax.ShapeDtypeStruct((), jnp.int32)}, lambda name: [], {})
    assert os.listdir(tmp_path) == []


def test_differences_name_ten_and_count_the_rest():
    names = [f"n{i}" for i in range(13)]
    assert differences(names, [], []) == f"13 missing: {', '.join(names[:10])} and 3 more"
    assert differences(names[:10], ["x"], [("y", (1, 2), (2, 1))]) == (
        f"10 missing: {', '.join(names[:10])}; 1 unexpected: x; "
        "1 of the wrong shape: y is [1, 2] instead of [2, 1]"
    )
    assert differences([], [], []) == ""


# --- the native file
# --------------------------------------------------------------------------------------------


def test_round_trip_keeps_every_bit(model, params, saved):
    again, loaded = from_pretrained(saved)
    config = again.config()
    assert type(again) is VGGT
    assert config == model.config() == json.loads(json.dumps(config))
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    for key, array in flat(loaded).items():
        assert isinstance(array, jax.Array)
        np.testing.assert_array_equal(array, flat(params)[key], strict=True)
    with safe_open(saved, "np") as f:
        metadata = f.metadata()
    assert metadata | {"config": ""} == {
        "format": "fastvggt_jax",
        "format_version": "1",
        "model": "VGGT",
        "config": "",
        "source": "a test",
        "license": "none",
    }


def test_loaded_model_is_the_saved_one(model, saved):
    loaded, _ = from_pretrained(saved, frames_chunk=3)
    assert loaded == model.clone(frames_chunk=3)


def test_param_dtype_casts_on_load_and_bfloat16_survives_a_round_trip(model, params, saved, tmp_path):
    loaded, half = from_pretrained(saved, param_dtype=jnp.bfloat16)
    assert loaded == model  # how it computes is another thing
    save_params(tmp_path / "half.safetensors", half, loaded)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * saved.stat().st_size
    _, again = from_pretrained(tmp_path / "half.safetensors")
    for key, array in flat(again).items():
        assert array.dtype == jnp.bfloat16
        np.testing.assert_array_equal(array, flat(params)[key].astype(ml_dtypes.bfloat16))
    wide, full = from_pretrained(tmp_path / "half.safetensors", param_dtype="float32", dtype="float16")
    assert jnp.dtype(wide.dtype) == jnp.float16
    assert {a.dtype for a in flat(full).values()} == {jnp.dtype("float32")}
    half_model, read = from_pretrained(saved, param_dtype="compute", dtype="bfloat16")
    for key, array in flat(read).items():
        assert array.dtype == half_model.storage(key)
    assert {a.dtype for a in flat(read).values()} == {jnp.dtype("float32"), jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    "options",
    [
        dict(dtype=jnp.int8),
        dict(param_dtype="nonsense"),
        dict(sparsity=0.5),
        dict(frames_chunk=0),
        dict(frames_chunk=2.5),
        dict(remat="yes"),
        dict(frames_chunk=True),
    ],
)
def test_options_of_the_wrong_kind_are_named(saved, options):
    (argument,) = options
    with pytest.raises(InputError, match=f"^{argument} must be") as raised:
        from_pretrained(saved, **options)
    assert raised.value.argument == argument


def test_heads_left_out_are_not_read(params, saved, monkeypatch):
    read = []

    class Watched:
        def __init__(self, path):
            self.file = open_safetensors(path)

        def __getattr__(self, name):
            return getattr(self.file, name)

        def get_tensor(self, name):
            read.append(name)
            return self.file.get_tensor(name)

    monkeypatch.setattr(weights, "open_safetensors", Watched)
    loaded, part = from_pretrained(saved, heads=["camera"])
    assert loaded.heads == ("camera",)
    assert set(read) == set(flat(part)) == {k for k in flat(params) if not k.startswith("depth_head/")}
    assert set(read) == set(abstract_tensors(loaded))
    with pytest.raises(ValueError, match="has no point, track head; it has camera, depth"):
        from_pretrained(saved, heads=("camera", "point", "track"))


def test_saving_what_is_not_the_models_fails(model, params, tmp_path):
    tree = flat(params)
    del tree["camera_head/token_norm/bias"]
    tree["camera_head/token_norm/offset"] = np.zeros(64, np.float32)
    tree["aggregator/camera_token"] = np.zeros((1, 2, 32), np.float32)
    with pytest.raises(WeightsError) as error:
        save_params(tmp_path / "a", {"params": traverse_util.unflatten_dict(tree, sep="/")}, model)
    for text in (
        "1 missing: camera_head/token_norm/bias",
        "1 unexpected: camera_head/token_norm/offset",
        "1 of the wrong shape: aggregator/camera_token is [1, 2, 32] instead of [1, 2, 1, 32]",
    ):
        assert text in str(error.value)
    assert os.listdir(tmp_path) == []


# --- bad files
# --------------------------------------------------------------------------------------------------


def test_file_that_does_not_fit_its_config(saved, tmp_path):
    key = "aggregator/frame_blocks/attn/proj/kernel"
    tensors = {
        key: np.zeros((4, 32, 31), np.float32),
        "camera_head/extra": np.zeros(1, np.float32),
        "depth_head/norm/scale": None,
        "depth_head/norm/bias": None,
    }
    path = rewrite(saved, tmp_path / "bad.safetensors", tensors)
    with pytest.raises(WeightsError) as error:
        from_pretrained(path)
    text = str(error.value)
    assert "bad.safetensors does not fit its model VGGT: 2 missing: depth_head/norm/" in text
    assert "1 unexpected: camera_head/extra" in text
    assert f"1 of the wrong shape: {key} is [4, 32, 31] instead of [4, 32, 32]" in text
    with pytest.raises(WeightsError, match="2 missing"):  # whatever is asked of it
        from_pretrained(path, heads=("camera",))


def damaged(kind, saved, path):
    raw = saved.read_bytes()
    path.write_bytes(
        {
            "cut in the data": raw[:-100],
            "cut in the header": raw[:500],
            "longer": raw + b"123",
            "empty": b"",
            "text": b"these are not weights " * 100,
            "zip": b"PK\x03\x04" + bytes(1000),
        }[kind]
    )
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut in the data", "is cut short or damaged"),
        ("cut in the header", "is cut short or damaged"),
        ("longer", "is cut short or damaged"),
        ("empty", "is not a safetensors file"),
        ("text", "is not a safetensors file"),
        ("zip", "is a PyTorch file: reading it needs the extra torch|is cut short or damaged"),
    ],
)
def test_damaged_file(kind, message, saved, tmp_path):
    path = damaged(kind, saved, tmp_path / "bad.safetensors")
    with pytest.raises(Error, match=f"bad.safetensors .*({message})"):
        from_pretrained(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            {"format_version": "2"},
            r"format version '2', this fastvggt_jax reads up to 1: upgrade",
        ),
        ({"model": "Pi4"}, r"holds the model 'Pi4'; this fastvggt_jax knows vggt, pi3"),
        ({"config": "{"}, r"no usable config: "),
        ({"config": '{"width": 3}'}, r"no usable config: .*width"),
        ({"config": "[]"}, r"no usable config: "),
        ({"format": "pt"}, r"is a native weight file already, not an official checkpoint"),
    ],
)
def test_file_of_another_kind(metadata, message, saved, tmp_path):
    path = rewrite(saved, tmp_path / "other.safetensors", **metadata)
    with pytest.raises(WeightsError, match=f"other.safetensors .*{message}"):
        from_pretrained(path)


def test_no_file(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"{tmp_path / 'none.safetensors'}: no such weight file")
    ):
        from_pretrained(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="holds no weight file"):
        from_pretrained(tmp_path)


def test_the_bundled_model_has_a_name():
    model, params = from_pretrained("mini", heads=("camera",))
    assert (
        type(model).__name__ == "VGGT"
        and model.image_policy == ("crop", 224, 14)
        and read_model("mini").heads == ("camera", "depth", "point")
    )
    assert weight_file("mini").stat().st_size < 40e6
    with pytest.raises(FileNotFoundError, match=r"maxi: no such weight file; bundled is mini; a hub"):
        from_pretrained("maxi")
