"""Weight files from anywhere: damaged, of other kinds, with values that no model has."""

import json
import random
import struct

import flax.traverse_util
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from convert.conversion import convert
from fastvggt_jax.errors import Error, InputError, MissingError, WeightsError
from fastvggt_jax.models.pi3 import Pi3
from fastvggt_jax.models.vggt import VGGT
from fastvggt_jax.pretrained import from_pretrained
from tests import make_checkpoint
from tests.convert.test_convert import GOLDEN, TINY


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """The tensors of a tiny official checkpoint with a camera head alone, by its keys."""
    folder = tmp_path_factory.mktemp("official")
    path = folder / "tiny.safetensors"
    make_checkpoint.write_checkpoint(make_checkpoint.load_manifest(GOLDEN / "vggt_tiny.manifest.json"), path)
    with safe_open(path, "np") as file:
        heads = ("point_head", "depth_head", "track_head")
        return {key: file.get_tensor(key) for key in file.keys() if not key.startswith(heads)}


@pytest.fixture(scope="module")
def native(official, tmp_path_factory):
    """The same as a native file: its tensors and its metadata."""
    folder = tmp_path_factory.mktemp("native")
    convert(save(folder / "a.safetensors", official), folder / "tiny.safetensors", config=TINY)
    with safe_open(folder / "tiny.safetensors", "np") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()


def save(path, tensors, metadata=None):
    save_file(tensors, path, metadata=metadata)
    return path


# ---- native files


@pytest.mark.parametrize(
    "dtype", ["int32", "int64", "uint8", "bool", "complex64", "float64", "float8_e4m3fn"]
)
def test_numbers_that_are_no_weights_are_refused_with_the_tensors_name(native, tmp_path, dtype):
    tensors, metadata = native
    name = sorted(tensors)[3]
    if dtype == "complex64":
        path = _with_header(save(tmp_path / "w.safetensors", tensors, metadata), name, dtype="C64")
    elif dtype == "float8_e4m3fn":
        path = save(
            tmp_path / "w.safetensors", tensors | {name: np.zeros(tensors[name].shape, np.uint8)}, metadata
        )
        path = _with_header(path, name, dtype="F8_E4M3")
    else:
        path = save(tmp_path / "w.safetensors", tensors | {name: tensors[name].astype(dtype)}, metadata)
    words = "damaged" if dtype == "complex64" else rf"{name}.*F32, BF16, F16"  # safetensors knows no C64 here
    with pytest.raises(WeightsError, match=words):
        from_pretrained(path)


def _with_header(path, name, **values):
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header[name] |= values
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
    return path


BAD_FIELDS = {
    "patch_size": (0, -1, 10**9, "x", None, 1.5, True),
    "embed_dim": (0, -1, "x", [64], 10**12, {}),
    "num_heads": (0, 3, -2, 10**8),
    "img_size": (0, 10**9),
    "depth": (0, 10**8),
    "encoder_depth": (10**8,),
    "camera_iterations": (0, 10**8),
    "taps": ([], [0, 1, 2], [3, 2, 1, 0], [0, 1, 2, 10**9], "0123"),
    "dpt_level_channels": ([], [0, 1, 2, 3], [10**9] * 4),
    "mlp_ratio": (0, -1, 1e9, "4"),
    "track_corr_levels": (0, 40),
    "heads": (["camera", "nose"], "camera", [1]),
    "num_register_tokens": (-1, 10**7),
}


@pytest.mark.parametrize("field, value", [(k, v) for k, values in BAD_FIELDS.items() for v in values])
def test_every_field_of_a_configuration_has_a_type_and_a_range(native, tmp_path, field, value):
    tensors, metadata = native
    config = json.loads(metadata["config"]) | {field: value}
    path = save(tmp_path / "w.safetensors", tensors, metadata | {"config": json.dumps(config)})
    with pytest.raises(WeightsError, match=r"w\.safetensors") as raised:
        from_pretrained(path)
    assert field in str(raised.value)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("model", [VGGT, Pi3])
def test_released_and_tiny_sizes_are_within_the_ranges(model):
    assert model.from_config(model().config()) == model()


@pytest.mark.parametrize("config", ["[" * 100_000, '{"a":' * 100_000, "null", "1e999", '{"depth": NaN}'])
def test_a_configuration_that_is_no_object_is_refused(native, tmp_path, config):
    tensors, metadata = native
    path = save(tmp_path / "w.safetensors", tensors, metadata | {"config": config})
    with pytest.raises(WeightsError, match=r"w\.safetensors.* has no usable config"):
        from_pretrained(path)


def _mutated(raw: bytes, seed: int) -> bytes:
    """A weight file with bytes of its header changed, cut out, doubled, or cut off."""
    rng = random.Random(seed)
    (length,) = struct.unpack("<Q", raw[:8])
    data = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        at = rng.choice([rng.randrange(8), 8 + rng.randrange(length)])
        what = rng.randrange(5)
        if what == 0:
            data[at] = rng.randrange(256)
        elif what == 1:
            del data[at : at + rng.randint(1, 40)]
        elif what == 2:
            data[at:at] = data[at : at + rng.randint(1, 40)]
        elif what == 3:
            digits = str(rng.choice([0, -1, 2**31, 2**63, 2**64, 10**30])).encode()
            data[at : at + 1] = digits
        else:
            del data[rng.randrange(len(data)) :]
        if len(data) < 9:
            break
    return bytes(data)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_headers_are_a_sentence_or_the_same_weights(native, tmp_path, seed):
    fuzz_header(native, tmp_path, range(5 * seed, 5 * seed + 5))


@pytest.mark.faults
def test_many_damaged_headers(native, tmp_path):
    fuzz_header(native, tmp_path, range(1000, 6000))


def fuzz_header(native, folder, seeds):
    tensors, metadata = native
    raw = save(folder / "whole.safetensors", tensors, metadata).read_bytes()
    path = folder / "w.safetensors"
    for seed in seeds:
        path.write_bytes(_mutated(raw, seed))
        try:
            _, params = from_pretrained(path)
        except Error as error:
            assert len(str(error)) < 2000, seed
        else:
            found = flax.traverse_util.flatten_dict(params["params"], sep="/")
            assert found.keys() == tensors.keys(), seed
            for name, value in tensors.items():
                np.testing.assert_array_equal(found[name], value, err_msg=str(seed))


# ---- official checkpoints


def test_the_whole_checkpoint_is_converted(official, tmp_path):
    report = convert(save(tmp_path / "a.safetensors", official), tmp_path / "out.safetensors", config=TINY)
    assert report.model.heads == ("camera",) and not report.source.notes


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_refused_at_conversion(official, tmp_path, bad):
    key = next(key for key in sorted(official) if key.startswith("camera_head") and official[key].ndim == 2)
    broken = official[key].copy()
    broken[-1, -1] = bad
    path = save(tmp_path / "a.safetensors", official | {key: broken})
    with pytest.raises(WeightsError, match=rf"{key} holds NaN or infinity"):
        convert(path, tmp_path / "out.safetensors", config=TINY)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_number_beyond_the_written_type_is_refused(official, tmp_path):
    key = sorted(official)[0]
    wide = np.full(official[key].shape, 1e300, np.float64)
    with pytest.raises(WeightsError, match="beyond the range of float32"):
        path = save(tmp_path / "a.safetensors", official | {key: wide})
        convert(path, tmp_path / "out.safetensors", config=TINY)


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod.", "net.vggt."])
def test_a_prefix_that_all_keys_share_is_taken_off_and_said(official, tmp_path, prefix):
    path = save(tmp_path / "a.safetensors", {prefix + key: tensor for key, tensor in official.items()})
    report = convert(path, tmp_path / "out.safetensors", config=TINY)
    assert any(f"the prefix {prefix} of all keys is taken off" in line for line in report.lines())
    _same(official, tmp_path)


def _same(official, tmp_path):
    reference = tmp_path / "reference.safetensors"
    convert(save(tmp_path / "whole.safetensors", official), reference, config=TINY)
    with safe_open(tmp_path / "out.safetensors", "np") as a, safe_open(reference, "np") as b:
        for key in b.keys():
            np.testing.assert_array_equal(a.get_tensor(key), b.get_tensor(key))


def test_extra_keys_are_left_out_as_asked_and_only_so(official, tmp_path):
    extra = {"optimizer.state": np.zeros(3, np.float32), "steps": np.zeros(1, np.int64)}
    path, out = save(tmp_path / "a.safetensors", official | extra), tmp_path / "out.safetensors"
    with pytest.raises(WeightsError, match=r"2 unexpected: optimizer.state, steps"):
        convert(path, out, config=TINY)
    report = convert(path, out, config=TINY, ignore=[r"optimizer\..*", "steps"])
    assert any("left out as asked: optimizer.state, steps" in line for line in report.lines())
    for pattern, match in ((r"optim", "is of no key"), ("(", "must be regular expressions")):
        with pytest.raises(InputError, match=match) as raised:
            convert(path, out, config=TINY, ignore=[pattern], overwrite=True)
        assert raised.value.argument == "ignore"


@pytest.fixture
def shards(official, tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    keys = sorted(official)
    where = {}
    for i in range(3):
        name = f"model-{i}.safetensors"
        save(folder / name, {key: official[key] for key in keys[i::3]})
        where |= {key: name for key in keys[i::3]}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def test_an_index_and_its_shards_are_one_checkpoint(official, shards, tmp_path):
    for source in (shards, shards / "model.safetensors.index.json"):
        report = convert(source, tmp_path / "out.safetensors", config=TINY, overwrite=True)
        assert "note      3 shards" in list(report.lines())
    _same(official, tmp_path)


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda where: where | {"x": "../secret.safetensors"}, "must lie beside"),
        (lambda where: where | {"x": "/etc/passwd"}, "must lie beside"),
        (lambda where: where | {"x": "model-0.safetensors"}, "do not hold: x"),
        (lambda where: where | {"x": "gone.safetensors"}, "gone.safetensors: no such file"),
        (lambda where: list(where), "not a list of shards"),
    ],
)
def test_a_list_of_shards_names_only_what_lies_beside_it(shards, tmp_path, change, match):
    index = shards / "model.safetensors.index.json"
    where = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": change(where)}))
    with pytest.raises((WeightsError, MissingError), match=match):
        convert(shards, tmp_path / "out.safetensors", config=TINY)


# ---- files of PyTorch


class Namespace:
    pass


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_state_dict", "ema", "module"])
@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".bin", ".pth.tar", ".weights"])
def test_wrappings_of_pytorch_files(official, tmp_path, wrapper, suffix):
    torch = pytest.importorskip("torch")
    tensors = {key: torch.tensor(tensor) for key, tensor in official.items()}
    data = tensors if wrapper is None else {wrapper: tensors, "epoch": 3, "loss": np.float64(0.5)}
    torch.save(data, tmp_path / f"a{suffix}")
    report = convert(tmp_path / f"a{suffix}", tmp_path / "out.safetensors", config=TINY)
    assert (wrapper is None) != any(f"those under {wrapper}" in line for line in report.lines())
    if suffix == ".ckpt":
        _same(official, tmp_path)


def test_parameters_and_tensors_that_require_gradients(official, tmp_path):
    torch = pytest.importorskip("torch")
    kinds = (torch.nn.Parameter, lambda t: t.requires_grad_(), lambda t: t)
    tensors = {key: kinds[i % 3](torch.tensor(official[key])) for i, key in enumerate(sorted(official))}
    torch.save(tensors, tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "out.safetensors", config=TINY)
    _same(official, tmp_path)


def test_objects_beside_the_weights_are_named_and_never_made(official, tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {key: torch.tensor(tensor) for key, tensor in official.items()}
    torch.save({"model": tensors, "args": Namespace()}, tmp_path / "a.pt")
    with pytest.raises(
        WeightsError, match=r"holds tests.faults.test_weights.Namespace.*save the weights alone"
    ):
        convert(tmp_path / "a.pt", tmp_path / "out.safetensors", config=TINY)


def test_bfloat16_and_half_precision(official, tmp_path):
    tensors = {key: tensor.astype(ml_dtypes.bfloat16) for key, tensor in official.items()}
    convert(save(tmp_path / "a.safetensors", tensors), tmp_path / "out.safetensors", config=TINY)
    with safe_open(tmp_path / "out.safetensors", "np") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F32"}
