"""Conversion: every official key lands once and in the right layout, or nothing is written and misfits are
named.
"""

import json
import math
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from convert import conversion, hub, pi3, pi3x, vggt
from convert.convert_weights import main
from convert.official import fields_of
from convert.rules import make_plan
from convert.sources import open_source
from fastvggt_jax.errors import WeightsError
from fastvggt_jax.io.weights import abstract_tensors, native_metadata
from fastvggt_jax.models.pi3 import Pi3
from fastvggt_jax.models.pi3x import Pi3X
from fastvggt_jax.models.vggt import VGGT
from fastvggt_jax.pretrained import from_pretrained
from tests import make_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = GOLDEN / "vggt_tiny.config.json"


def manifest_shapes(name):
    tensors = make_checkpoint.load_manifest(GOLDEN / f"{name}.manifest.json")["tensors"]
    return {t["key"]: tuple(t["shape"]) for t in tensors}


# --- VGGT's table
# -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_size():
    return abstract_tensors(VGGT())


def test_every_key_of_the_released_model_is_accounted_for(full_size):
    source = manifest_shapes("vggt_1b")
    plan = make_plan(source, full_size, vggt.RULES, vggt.IGNORE)
    assert [key for key, _ in plan.ignored] == ["aggregator.patch_embed.mask_token"]
    used = [key for target in plan.targets for key in target.keys]
    assert len(used) == len(set(used)) == 1797 - 1
    numbers = sum(math.prod(t.shape) for t in plan.targets)
    assert numbers == 1_256_537_516 - 1024  # the manifest's count less mask_token
    assert full_size["aggregator/frame_blocks/attn/qkv/kernel"].shape == (24, 1024, 3072)


def test_every_key_of_the_released_pi3_is_accounted_for():
    full_size = abstract_tensors(Pi3())
    plan = make_plan(manifest_shapes("pi3"), full_size, pi3.RULES, pi3.IGNORE)
    assert sorted(key for key, _ in plan.ignored) == ["image_mean", "image_std"]
    used = [key for target in plan.targets for key in target.keys]
    assert len(used) == len(set(used)) == 1210 - 2
    assert sum(math.prod(t.shape) for t in plan.targets) == 958_696_738 - 6
    blocks = {t.name: t.keys for t in plan.targets}["decoder/global_blocks/attn/qkv/kernel"]
    assert blocks == tuple(f"decoder.{i}.attn.qkv.weight" for i in range(1, 36, 2))
    source = manifest_shapes("pi3")
    del source["decoder.7.norm1.weight"]
    with pytest.raises(WeightsError, match=r"^1 missing: decoder\.7\.norm1\.weight$"):
        make_plan(source, full_size, pi3.RULES, pi3.IGNORE)


def test_every_key_of_the_released_pi3x_is_accounted_for():
    full_size = abstract_tensors(Pi3X())
    source = manifest_shapes("pi3x")
    table = pi3x.TABLE
    plan = make_plan(source, full_size, table.rules, table.ignore)
    assert sorted(key for key, _ in plan.ignored) == ["image_mean", "image_std"]
    used = [key for target in plan.targets for key in target.keys]
    assert len(used) == len(set(used)) == 1873 - 2
    assert sum(math.prod(t.shape) for t in plan.targets) == 1_360_032_439 - 6
    targets = {t.name: t.keys for t in plan.targets}
    injections = targets["pose_inject_blocks/attn/qkv/kernel"]
    assert injections == tuple(f"pose_inject_blk.{i}.attn.qkv.weight" for i in range(5))
    assert table.recognises(source) and not pi3.TABLE.recognises(source)
    # Without the part that reads conditions, as upstream can be built, it is a Pi3X all the same.
    gone = re.compile(r"depth_encoder\..*|depth_emb|ray_embed\..*|pose_inject_blk\..*")
    few = {key: shape for key, shape in source.items() if not gone.fullmatch(key)}
    assert len(source) - len(few) == 436 and table.recognises(few)
    model = Pi3X(heads=table.heads_in(Pi3X, Pi3X().heads, few))
    assert model.heads == ("point", "conf", "camera", "metric")
    assert len(make_plan(few, abstract_tensors(model), table.rules, table.ignore).targets) < len(targets)


@pytest.mark.parametrize("key", ["camera_head.token_norm.bias", "aggregator.frame_blocks.7.mlp.fc1.weight"])
def test_one_missing_or_misshaped_key_of_the_released_model_fails(full_size, key):
    source = manifest_shapes("vggt_1b")
    shape = source.pop(key)
    with pytest.raises(WeightsError, match=f"^1 missing: {key.replace('.', '[./]')}$"):
        make_plan(source, full_size, vggt.RULES, vggt.IGNORE)
    source[key] = (*shape[:-1], shape[-1] + 1)
    with pytest.raises(WeightsError, match=f"^1 of the wrong shape: {re.escape(key)} is "):
        make_plan(source, full_size, vggt.RULES, vggt.IGNORE)


# --- the command, on pseudo-checkpoints
# -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "model.safetensors"
    make_checkpoint.write_checkpoint(make_checkpoint.load_manifest(GOLDEN / "vggt_tiny.manifest.json"), path)
    return path


@pytest.fixture(scope="module")
def tiny_tensors():
    return abstract_tensors(
        VGGT.from_config(fields_of(json.loads(TINY.read_text())["config"], VGGT, vggt.OFFICIAL))
    )


@pytest.fixture(scope="module")
def camera_only(tiny):
    """A checkpoint whose other heads were stripped (and which is quick to convert)."""
    path = tiny.with_name("camera.safetensors")
    save_file(
        {k: v for k, v in load_file(tiny).items() if k.startswith(("aggregator.", "camera_head."))}, path
    )
    return path


def run(*arguments):
    return main([str(a) for a in arguments])


def refused(capsys, *arguments):
    """The sentence with which the command refuses its arguments."""
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error ") and err.count("\n") == 1
    return err


def test_tiny_checkpoint_lands_where_it_should(tiny, tmp_path, capsys):
    out = tmp_path / "native.safetensors"
    assert run(tiny, out, "--config", TINY) == 0
    assert os.listdir(tmp_path) == ["native.safetensors"]
    printed = capsys.readouterr().out
    for text in (
        f"read      {tiny}: 547 tensors, 5,360,236 numbers, float32",
        f"model     VGGT, sizes of {TINY}; heads: camera, depth, point, track\n",
        "variant   1b, track features without position embedding (assumed: the keys do not tell, and the "
        "name model.safetensors has no tracker_fixed in it)",
        "ignored   aggregator.patch_embed.mask_token: it serves masked training only",
        f"wrote     {out}: 344 tensors, 5,360,108 numbers, float32, 0.02 GB",
        "licence   of the weights: unknown, see the source",
    ):
        assert text in printed

    model, params = from_pretrained(out)
    assert not model.track_pos_embed
    theirs, ours = load_file(tiny), load_file(out)
    assert len(ours) == len(jax.tree.leaves(params)) == 344
    for native, official in {
        "aggregator/camera_token": theirs["aggregator.camera_token"],
        "aggregator/patch_embed/patch_embed/proj/kernel": theirs[
            "aggregator.patch_embed.patch_embed.proj.weight"
        ].transpose(2, 3, 1, 0),
        "camera_head/poseLN_modulation_1/kernel": theirs["camera_head.poseLN_modulation.1.weight"].T,
        "point_head/resize_layers_0/kernel": theirs["point_head.resize_layers.0.weight"].transpose(
            2, 3, 0, 1
        ),
        "point_head/resize_layers_3/kernel": theirs["point_head.resize_layers.3.weight"].transpose(
            2, 3, 1, 0
        ),
        "depth_head/scratch/output_conv2_2/bias": theirs["depth_head.scratch.output_conv2.2.bias"],
        "track_head/tracker/vis_predictor_0/kernel": theirs["track_head.tracker.vis_predictor.0.weight"].T,
    }.items():
        np.testing.assert_array_equal(ours[native], official, strict=True)
    for i in range(4):
        for native, official in {
            "aggregator/global_blocks/attn/proj/kernel": theirs[
                f"aggregator.global_blocks.{i}.attn.proj.weight"
            ].T,
            "aggregator/frame_blocks/attn/q_norm/scale": theirs[
                f"aggregator.frame_blocks.{i}.attn.q_norm.weight"
            ],
            "aggregator/frame_blocks/ls2/gamma": theirs[f"aggregator.frame_blocks.{i}.ls2.gamma"],
        }.items():
            np.testing.assert_array_equal(ours[native][i], official, strict=True)
    blocks = "track_head/tracker/updateformer/space_virtual2point_blocks/cross_attn"
    key = blocks.replace("/", ".").replace("blocks", "blocks.1") + ".in_proj_weight"
    np.testing.assert_array_equal(ours[f"{blocks}/in_proj/kernel"][1], theirs[key].T, strict=True)


def test_no_square_matrix_keeps_its_official_layout(full_size):
    """Every 2-D weight, square or not, is transposed, and nothing else of up to two axes."""
    source = manifest_shapes("vggt_1b")
    plan = make_plan(source, full_size, vggt.RULES, vggt.IGNORE)
    squares = 0
    for target in plan.targets:
        for key in target.keys:
            shape = source[key]
            is_matrix = len(shape) == 2 and key.endswith("weight")
            assert (target.transform == "linear") == is_matrix, key
            squares += is_matrix and shape[0] == shape[1]
    assert squares == 101  # of 411, says the design


def test_stripped_heads_and_bfloat16(camera_only, tmp_path, capsys):
    out = tmp_path / "native.safetensors"
    assert run(camera_only, out, "--config", TINY, "--param-dtype", "bfloat16") == 0
    printed = capsys.readouterr().out
    assert "heads: camera (not in it: depth, point, track)" in printed
    assert "variant" not in printed
    ours, theirs = load_file(out), load_file(camera_only)
    assert {str(array.dtype) for array in ours.values()} == {"bfloat16"}
    key = "aggregator.global_blocks.2.attn.proj.weight"
    bits = make_checkpoint.to_bfloat16_bits(theirs[key]).reshape(
        theirs[key].shape
    )  # to nearest, ties to even
    np.testing.assert_array_equal(
        ours["aggregator/global_blocks/attn/proj/kernel"][2].view(np.uint16), bits.T
    )
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8], np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)
    assert ties.tolist() == [1.0, 1 + 2**-6]
    model, _ = from_pretrained(out)
    assert model.heads == ("camera",)
    with safe_open(out, "np") as f:
        assert f.metadata() == native_metadata(model, "camera.safetensors", hub.UNKNOWN_LICENCE)


def test_bfloat16_source_and_flat_config(camera_only, tmp_path):
    half = {k: v.astype(ml_dtypes.bfloat16) for k, v in load_file(camera_only).items()}
    save_file(half, tmp_path / "half.safetensors")
    config = VGGT.from_config(fields_of(json.loads(TINY.read_text())["config"], VGGT, vggt.OFFICIAL)).config()
    (tmp_path / "flat.json").write_text(json.dumps(config))
    out = tmp_path / "native.safetensors"
    assert run(tmp_path / "half.safetensors", out, "--config", tmp_path / "flat.json") == 0
    written = load_file(out)["camera_head/embed_pose/kernel"]
    np.testing.assert_array_equal(
        written, half["camera_head.embed_pose.weight"].astype(np.float32).T, strict=True
    )


@pytest.mark.parametrize(
    ("name", "arguments", "fixed", "why"),
    [
        (
            "model_tracker_fixed_e20.safetensors",
            (),
            True,
            "name model_tracker_fixed_e20.safetensors has tracker_fixed",
        ),
        ("model.safetensors", ("--variant", "tracker-fixed"), True, "(as asked)"),
        ("model_tracker_fixed_e20.safetensors", ("--variant", "1b"), False, "(as asked)"),
    ],
)
def test_variant(tiny, tiny_tensors, tmp_path, capsys, monkeypatch, name, arguments, fixed, why):
    # Tracing the tracker is slow, and the variant changes no shape.
    monkeypatch.setattr(conversion, "abstract_tensors", lambda network: tiny_tensors)
    (tmp_path / name).symlink_to(tiny)
    out = tmp_path / "native.safetensors"
    assert run(tmp_path / name, out, "--config", TINY, *arguments) == 0
    assert why in capsys.readouterr().out
    with safe_open(out, "np") as f:
        assert json.loads(f.metadata()["config"])["track_pos_embed"] is fixed


def test_misfit_names_the_keys_and_the_config(camera_only, tmp_path, capsys):
    tensors = load_file(camera_only)
    del tensors["camera_head.trunk.1.ls1.gamma"]
    tensors["camera_head.extra.weight"] = np.zeros(3, np.float32)
    tensors["camera_head.token_norm.bias"] = np.zeros(3, np.float32)
    bad = tmp_path / "bad.safetensors"
    save_file(tensors, bad)
    err = refused(capsys, bad, tmp_path / "out.safetensors", "--config", TINY)
    assert err == (
        f"error {bad} does not fit the sizes of {TINY}: 1 missing: camera_head.trunk.1.ls1.gamma; "
        "1 unexpected: camera_head.extra.weight; "
        "1 of the wrong shape: camera_head.token_norm.bias is [3] instead of [256]\n"
    )
    assert os.listdir(tmp_path) == ["bad.safetensors"]


def test_other_sizes_need_a_config(camera_only, tmp_path, capsys):
    err = refused(capsys, camera_only, tmp_path / "out.safetensors")
    assert "does not fit the sizes of VGGT-1B, assumed for want of a --config: " in err
    assert "aggregator.camera_token is [1, 2, 1, 128] instead of [1, 2, 1, 1024]" in err
    assert re.search(r" and \d+ more", err)
    assert os.listdir(tmp_path) == []


def test_other_models_are_refused(tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    save_file({"point_decoder.projects.weight": np.zeros((2, 2), np.float32)}, tmp_path / "pi3.safetensors")
    assert "pi3.safetensors is a checkpoint of pi3, not of vggt: leave --model out or give pi3" in refused(
        capsys, tmp_path / "pi3.safetensors", out, "--model", "vggt"
    )
    assert "does not fit the sizes of the released π³" in refused(capsys, tmp_path / "pi3.safetensors", out)
    assert "--variant 1b is not of Pi3, which has auto" in refused(
        capsys, tmp_path / "pi3.safetensors", out, "--variant", "1b"
    )
    tensors = {
        key: np.zeros((2, 2), np.float32)
        for key in ("point_decoder.projects.weight", "metric_token", "conf_head.uv.weight")
    }
    save_file(tensors, tmp_path / "pi3x.safetensors")
    assert "pi3x.safetensors does not fit the sizes of the released Pi3X" in refused(
        capsys, tmp_path / "pi3x.safetensors", out
    )
    assert "pi3x.safetensors is a checkpoint of pi3x, not of pi3: leave --model out or give pi3x" in refused(
        capsys, tmp_path / "pi3x.safetensors", out, "--model", "pi3"
    )
    save_file({"depth_decoder.proj.weight": np.zeros((2, 2), np.float32)}, tmp_path / "other.safetensors")
    assert "is not a VGGT or Pi3 or Pi3X checkpoint" in refused(capsys, tmp_path / "other.safetensors", out)
    save_file({"aggregator.camera_token": np.zeros((2, 2), np.float32)}, tmp_path / "vggt.safetensors")
    assert "vggt.safetensors is a checkpoint of vggt, not of pi3" in refused(
        capsys, tmp_path / "vggt.safetensors", out, "--model", "pi3"
    )
    save_file({"layer1.0.conv1.weight": np.zeros((2, 2), np.float32)}, tmp_path / "resnet.safetensors")
    assert (
        "is not a VGGT or Pi3 or Pi3X checkpoint: it holds layer1.0.conv1.weight, ..., no aggregator"
        in refused(capsys, tmp_path / "resnet.safetensors", out)
    )
    assert "does not fit the sizes" in refused(
        capsys, tmp_path / "resnet.safetensors", out, "--model", "vggt", "--config", TINY
    )
    save_file({"aggregator/camera_token": np.zeros((2, 2), np.float32)}, tmp_path / "native.safetensors")
    assert "is a native weight file already" in refused(capsys, tmp_path / "native.safetensors", out)
    assert not out.exists()


def test_unusable_arguments(camera_only, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    assert "none.safetensors: no such file" in refused(capsys, tmp_path / "none.safetensors", out)
    assert "none.pt: no such file" in refused(capsys, tmp_path / "none.pt", out)
    assert "nor the name of a hub repository (OWNER/NAME)" in refused(capsys, "vggt", out)
    (tmp_path / "weights.bin").write_bytes(b"1234")
    assert "weights.bin is neither a safetensors file nor one of PyTorch" in refused(
        capsys, tmp_path / "weights.bin", out
    )
    (tmp_path / "cut.safetensors").write_bytes(camera_only.read_bytes()[:-10])
    assert "cut.safetensors is a safetensors file that is cut short" in refused(
        capsys, tmp_path / "cut.safetensors", out
    )
    assert "out.npz must end in .safetensors" in refused(capsys, camera_only, tmp_path / "out.npz")
    assert "does not exist" in refused(capsys, camera_only, tmp_path / "no" / "out.safetensors")
    (tmp_path / "old.safetensors").write_bytes(b"old")
    assert "exists already: give another name or --overwrite it" in refused(
        capsys, camera_only, tmp_path / "old.safetensors"
    )
    assert "is the checkpoint itself" in refused(capsys, camera_only, camera_only, "--overwrite")
    assert not out.exists()
    assert (tmp_path / "old.safetensors").read_bytes() == b"old"


def test_unusable_config(camera_only, tmp_path, capsys):
    def with_config(text):
        (tmp_path / "c.json").write_text(text)
        return refused(capsys, camera_only, tmp_path / "out.safetensors", "--config", tmp_path / "c.json")

    assert "c.json is no JSON file: Expecting property name" in with_config("{")
    assert "c.json is not the configuration of a VGGT as JSON: it is no object" in with_config("[]")
    assert "c.json is not the configuration of a VGGT as JSON: " in with_config('{"widht": 3}')
    assert "c.json is not the configuration of a VGGT as JSON: " in with_config('{"embed_dim": "wide"}')
    assert "c.json describes no working VGGT: " in with_config('{"depth": 3}')
    assert "none.json: no such file" in refused(
        capsys, camera_only, tmp_path / "out.safetensors", "--config", tmp_path / "none.json"
    )


def test_full_disk(camera_only, tmp_path, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (1 << 20, hard)
    )  # the kernel refuses to let a file grow further
    try:
        assert run(camera_only, tmp_path / "out.safetensors", "--config", TINY) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert re.fullmatch(
        r"error could not write .*out\.safetensors .*; nothing was left behind\n", capsys.readouterr().err
    )
    assert os.listdir(tmp_path) == []


def test_overwrite_replaces(camera_only, tmp_path):
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"old")
    assert run(camera_only, out, "--config", TINY, "--overwrite") == 0
    assert from_pretrained(out)[0].heads == ("camera",)


# --- PyTorch files
# ----------------------------------------------------------------------------------------------


def test_safetensors_need_no_torch(camera_only, tmp_path):
    code = (
        "import sys; from convert.convert_weights import main; status = main(sys.argv[1:]); "
        "sys.exit(status or ('torch' in sys.modules or 'huggingface_hub' in sys.modules))"
    )
    command = [sys.executable, "-c", code, camera_only, tmp_path / "out.safetensors", "--config", TINY]
    done = subprocess.run(command, cwd=GOLDEN.parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_pt_without_torch(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04")
    err = refused(capsys, tmp_path / "model.pt", tmp_path / "out.safetensors")
    assert (
        "model.pt is a PyTorch file: reading it needs the extra torch (pip install 'fastvggt_jax[torch]')"
        in err
    )


@pytest.mark.parametrize("form", ["plain", "under model", "under state_dict", "old"])
def test_pt_reads_as_the_same_tensors(camera_only, tmp_path, form):
    torch = pytest.importorskip("torch")
    arrays = load_file(camera_only)
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    tensors["camera_head.embed_pose.weight"] = tensors["camera_head.embed_pose.weight"].bfloat16()
    wrap = {"under model": "model", "under state_dict": "state_dict"}.get(form)
    data = {wrap: tensors, "epoch": 20} if wrap else tensors
    torch.save(data, tmp_path / "model.pt", _use_new_zipfile_serialization=form != "old")
    source = open_source(tmp_path / "model.pt")
    assert set(source.shapes) == set(arrays)
    assert source.dtypes["camera_head.embed_pose.weight"] == "bfloat16"
    for key, array in arrays.items():
        read = source.read(key)
        assert source.shapes[key] == array.shape
        np.testing.assert_array_equal(read, array.astype(read.dtype), strict=True)


def test_pt_converts(camera_only, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({k: torch.from_numpy(v) for k, v in load_file(camera_only).items()}, tmp_path / "model.pt")
    assert run(tmp_path / "model.pt", tmp_path / "pt.safetensors", "--config", TINY) == 0
    assert run(camera_only, tmp_path / "st.safetensors", "--config", TINY) == 0
    a, b = load_file(tmp_path / "pt.safetensors"), load_file(tmp_path / "st.safetensors")
    assert set(a) == set(b)
    assert all(np.array_equal(a[key], b[key]) for key in a)


def test_bad_pt(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    out = tmp_path / "out.safetensors"
    path = tmp_path / "model.pt"
    torch.save({"aggregator.camera_token": torch.zeros(4), "path": Path()}, path)
    assert "model.pt holds pathlib.PosixPath, which only running its code" in refused(capsys, path, out)
    torch.save({"epoch": 3, "optimizer": {"lr": 1.0}}, path)
    assert "holds no state_dict, neither plain nor under one of state_dict, model, " in refused(
        capsys, path, out
    )
    torch.save({"aggregator.camera_token": torch.zeros(4000)}, path)
    path.write_bytes(path.read_bytes()[:-200])
    assert "model.pt is cut short or damaged" in refused(capsys, path, out)
    path.write_bytes(b"hello world" * 50)
    assert re.search(r"is cut short or damaged|is damaged", refused(capsys, path, out))
    path.write_bytes(b"")
    assert re.search(r"is cut short or damaged|is damaged", refused(capsys, path, out))
