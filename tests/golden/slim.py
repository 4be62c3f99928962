"""Copies the reference goldens into this folder, slimmed to what the test suite needs (at most 17 MB).

    python tests/golden/slim.py REFERENCE_DIR

Left out: the cases in DROP, whose branches other cases reach; in `sparse_qkv_*` the attention outputs of all
but four settings (masks and pooled probabilities stay for all); `agg.concat.*`, which repeats `agg.frame.*`
and `agg.global.*`. `python -m tests.parity --reference REFERENCE_DIR` runs against the full set.
"""

import shutil
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import save_file

DROP = (
    "sparse_qkv_n3_5x7",
    "sparse_qkv_n3_10x13_d32_q32k16",
    "sparse_qkv_n8",
    "sparse_vggt_tiny_84x112_q32k16_r50.",
)
DROP += ("pi3_tiny_b1n3", "pi3_tiny_hd64", "sparse_pi3_tiny_84x112_q32")
DROP += ("pi3x_tiny_b1", "pi3x_tiny_hd64_b1", "full_pi3x_n2_224x280_images")
DROP += ("layer_pi3x_metric_hd64", "layer_pi3x_pose_inject_hd64")
SETTINGS = ("r50", "r50c90", "r80c40", "r50c90_max")
HERE = Path(__file__).parent


def is_kept(name: str, key: str) -> bool:
    if name.startswith("sparse_qkv") and key.startswith("out."):
        return key[len("out.") :] in SETTINGS
    if name.startswith("layer_pi3x_geometry") and key in ("edge", "in.mask", "intrinsics_centred"):
        return False  # ours finds edges in another way, and fits the principal point too
    return not (name.startswith("vggt_tiny") and key.startswith("agg.concat."))


def main(reference: Path) -> None:
    for path in sorted(reference.iterdir()):
        if path.name.startswith(DROP):
            continue
        if path.suffix == ".safetensors":
            with safe_open(path, "np") as f:
                tensors = {k: f.get_tensor(k) for k in f.keys() if is_kept(path.name, k)}
                save_file(tensors, HERE / path.name, f.metadata())
        elif path.suffix == ".json":
            shutil.copyfile(path, HERE / path.name)
    shutil.copytree(reference / "images", HERE / "images", dirs_exist_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
