"""Compiles the Triton kernels for NVIDIA cards that are not there and shows what they take of them.

    pip install 'jax[cuda13]' nvidia-cuda-nvcc nvidia-nvvm      # Python >= 3.12; no GPU, no driver
    JAX_PLATFORMS=cpu python -m tests.pallas_kernels.absent_card [8.0 8.6 8.9 9.0 12.0]

XLA compiles for a description of the card; its PTX is assembled once more by ptxas, which reports registers
and spills. Each line is one kernel: of attention, with the config that the heuristic picks, and of the mask's
row thresholds. The exit status is 1 if a kernel needs more shared memory than a thread block of the card may
use, has an instruction that a card of another kind brought (wgmma, the bulk copy engine, tcgen05), or, of
attention, does not use the matrix units. Hopper, which has its own kernels, is here for its configs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

# compute capability: a name that JAX knows without the device, multiprocessors, bytes of shared memory of a
# thread block and of a multiprocessor
CARDS = {
    "8.0": ("NVIDIA A100-SXM4-40GB", 108, 163 * 1024, 164 * 1024),
    "8.6": ("NVIDIA A10", 72, 99 * 1024, 100 * 1024),
    "8.9": ("NVIDIA L40", 142, 99 * 1024, 100 * 1024),
    "9.0": ("NVIDIA H100 80GB HBM3", 132, 227 * 1024, 228 * 1024),
    "12.0": ("NVIDIA RTX PRO 6000", 188, 99 * 1024, 100 * 1024),
}
# head dim, block
CASES = [
    (64, (128, 64)),
    (64, (128, 128)),
    (64, (64, 32)),
    (128, (128, 64)),
    (128, (128, 128)),
    (128, (64, 64)),
]
ROWS = (1077, 21_469)  # scores of a row of the mask: 50 and 1,003 views of 518×518
FOREIGN = r"wgmma|cp\.async\.bulk|tcgen05|setmaxnreg"
ATTEND, THRESHOLDS = "_attend_tile", "_find_threshold"  # names of kernels
Case = tuple[
    str, str, Callable[..., Any], Any
]  # what it is, its kernel, what is compiled, for which arguments


def toolkit() -> Path:
    """Where nvidia-cuda-nvcc has put ptxas; or CUDA_HOME."""
    if "CUDA_HOME" in os.environ:
        return Path(os.environ["CUDA_HOME"])
    found = [file for file in metadata.files("nvidia-cuda-nvcc") or [] if file.name == "ptxas"]
    return Path(str(found[0].locate())).resolve().parent.parent


def description(capability: str) -> str:
    """The card as XLA's GpuTargetConfigProto."""
    name, cores, per_block, per_core = CARDS[capability]
    major, minor = capability.split(".")
    extension = "ACCELERATED_FEATURES" if capability == "9.0" else "NONE"
    return f"""gpu_device_info {{
      cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {extension} }}
      core_count: {cores} fpus_per_core: 128 threads_per_warp: 32
      threads_per_block_limit: 1024 threads_per_core_limit: 1536
      shared_memory_per_block: 49152 shared_memory_per_block_optin: {per_block}
      shared_memory_per_core: {per_core}
      registers_per_core_limit: 65536 registers_per_block_limit: 65536
      block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
      thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
      memory_bandwidth: 800000000000 l2_cache_size: 41943040 clock_rate_ghz: 1.8
      device_memory_size: 48000000000
    }}
    platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{name}" """


def cases(capability: str) -> Iterator[Case]:
    import jax
    import jax.numpy as jnp

    from pallas_kernels import BlockMask, triton
    from pallas_kernels.implementation import Device
    from pallas_kernels.triton.attention import block_sparse_attention
    from pallas_kernels.triton.mask import row_thresholds

    # Two runs of keys, each with a partial block, as models have them.
    T, runs = 13_690, (13_690, 50)
    for head_dim, block in CASES:
        tokens = lambda n, H=head_dim: jax.ShapeDtypeStruct((1, n, 16, H), jnp.bfloat16)
        mask = jax.eval_shape(lambda block=block: BlockMask.full(1, 16, T, runs, block))
        config = triton.Triton().heuristic(head_dim, block, Device("gpu", CARDS[capability][0], capability))
        run = lambda *a, config=config: block_sparse_attention(*a, config)
        what = f"head_dim {head_dim} block {block[0]}x{block[1]}"
        yield what, ATTEND, run, (tokens(T), tokens(sum(runs)), tokens(sum(runs)), mask)
    for size in ROWS:
        scores, number = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 16, 40, size), ()))
        yield f"rows of {size} scores", THRESHOLDS, row_thresholds, (scores, number, number)


def compiled(
    capability: str, kernel: str, run: Callable[..., Any], arguments: Any, dump: Path
) -> tuple[str, str]:
    """PTX of the kernel, and Triton's last intermediate form, which says its shared memory."""
    import jax
    from jax.experimental import topologies
    from jax.sharding import AbstractDevice, AbstractMesh, SingleDeviceSharding

    for path in dump.iterdir():
        path.unlink()
    card = topologies.get_topology_desc(
        platform="cuda", topology="1x1x1", target_config=description(capability)
    ).devices[0]
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=SingleDeviceSharding(card))
    device = AbstractDevice(device_kind=CARDS[capability][0], num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        jax.jit(run).lower(*jax.tree.map(place, arguments)).compile()
    (ptx,) = [text for text in map(Path.read_text, dump.glob("*.ptx")) if f".entry {kernel}" in text]
    (form,) = [path.read_text() for path in dump.glob("*triton-to-llvm.txt")]
    return ptx, form


def report(capability: str, case: Case, dump: Path) -> bool:
    """Prints a line; whether the kernel is what the card takes."""
    what, kernel, run, arguments = case
    ptx, form = compiled(capability, kernel, run, arguments, dump)
    (dump / "kernel.ptx").write_text(ptx)
    arch = "sm_" + capability.replace(".", "") + ("a" if capability == "9.0" else "")
    command = ["ptxas", "-v", f"-arch={arch}", dump / "kernel.ptx", "-o", dump / "kernel.cubin"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    (registers,) = re.findall(r"Used (\d+) registers", said)
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", said)))
    shared = int(re.findall(r"ttg\.shared = (\d+)", form)[-1])
    of_hopper = capability == "9.0"
    products = len(re.findall(r"wgmma\.mma_async" if of_hopper else r"mma\.sync", ptx))
    foreign = [] if of_hopper else re.findall(FOREIGN, ptx)
    good = shared <= CARDS[capability][2] and (products > 0) == (kernel == ATTEND) and not foreign
    print(
        f"{arch} {what}: {registers} registers, {spilled} bytes spilled, {shared} bytes of shared memory, "
        f"{products} products, {len(foreign)} of other cards"
        f"{'' if good else '  <-- does not fit'}",
        flush=True,
    )
    return good


def main(capabilities: list[str]) -> int:
    root = toolkit()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PATH"] = f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"
        os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
        flags = f"--xla_gpu_cuda_data_dir={root} --xla_dump_to={folder}"
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_dump_llvmir=true --xla_dump_emitter_re=.*"
        good = [report(one, case, Path(folder)) for one in capabilities or CARDS for case in cases(one)]
    return int(not all(good))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
