"""The rows of others: JAX's dense attention, PyTorch's dense and sparse one."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax

from pallas_kernels.bench.table import JAX_CUDNN, JAX_MGPU, TORCH_CUDNN, TORCH_FLASH, TORCH_FLEX, Row, attempt
from pallas_kernels.bench.workloads import Workload, random_qkv
from pallas_kernels.timing import jax_ms, torch_ms

FLEX_BLOCK = 128
MGPU_TILINGS = (
    (64, 256, 2),
    (64, 128, 2),
    (64, 128, 4),
    (64, 64, 4),
    (128, 64, 4),
    (128, 128, 2),
)  # block_q, block_kv, max_concurrent_steps


def jax_rows(args: argparse.Namespace, work: Workload) -> Iterator[Row]:
    """JAX's own dense attention: cuDNN's, and the best tiling of the Mosaic GPU example kernel."""
    T, S = work.patches, work.kv_len
    attend = partial(jax.nn.dot_product_attention, implementation="cudnn")
    qkv = random_qkv(T, S, work, args.dtype)
    yield attempt(Row(JAX_CUDNN, None, T, S), partial(jax_ms, attend, *qkv, repeats=args.repeats))
    rows = [_mgpu_row(args, work, *tiling) for tiling in MGPU_TILINGS]
    yield max(rows, key=lambda row: row.T * row.S / row.ms if row.ms else 0)


def _mgpu_row(args: argparse.Namespace, work: Workload, block_q: int, block_kv: int, steps: int) -> Row:
    """attention_mgpu with one tiling, at the nearest shape that the tiling divides."""
    T, S = nearest_multiple(work.patches, 2 * block_q), nearest_multiple(work.kv_len, block_kv)
    # Its shared memory is declared float16 (jax 0.11.2), so bfloat16 inputs do not trace; tensor cores run
    # both at one rate.
    dtype = "float16" if args.dtype == "bfloat16" else args.dtype
    note = f"{dtype}, block_q={block_q} block_kv={block_kv} max_concurrent_steps={steps}"
    if work.patches != T or work.kv_len != S:
        note += f", at T={T} S={S}: the nearest that it supports"

    def measure() -> float:
        from jax.experimental.pallas.ops.gpu import attention_mgpu

        config = attention_mgpu.TuningConfig(block_q=block_q, block_kv=block_kv, max_concurrent_steps=steps)
        q, k, v = random_qkv(T, S, work, dtype)
        scaled = q * work.head_dim**-0.5  # which this kernel leaves to its caller
        return jax_ms(
            lambda q, k, v: attention_mgpu.attention(q, k, v, config), scaled, k, v, repeats=args.repeats
        )

    return attempt(Row(JAX_MGPU, None, T, S, note=note), measure)


def nearest_multiple(n: int, of: int) -> int:
    """The multiple of `of`, at least `of` itself, that is nearest to n."""
    return max(1, (n + of // 2) // of) * of


def torch_rows(args: argparse.Namespace, work: Workload) -> Iterator[Row]:
    """PyTorch's dense SDPA by backend, then FlexAttention over random blocks, as many as the density asks
    for.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} sees no CUDA GPU")
    torch.set_grad_enabled(False)
    T, S = work.patches, work.kv_len
    dtype = getattr(torch, args.dtype)
    q, k, v = (
        torch.randn(1, work.num_heads, n, work.head_dim, device="cuda", dtype=dtype) for n in (T, S, S)
    )
    for what, backend in (
        (TORCH_FLASH, SDPBackend.FLASH_ATTENTION),
        (TORCH_CUDNN, SDPBackend.CUDNN_ATTENTION),
    ):
        with sdpa_kernel(backend):
            run = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)
            yield attempt(Row(what, None, T, S), partial(torch_ms, torch, run, args.repeats))

    from torch.nn.attention.flex_attention import flex_attention

    attend = torch.compile(
        flex_attention, dynamic=False
    )  # one program: all densities have arrays of the same shapes
    for asked in args.density:
        mask, density = flex_mask(work, asked, "cuda")
        run = partial(attend, q, k, v, block_mask=mask)
        yield attempt(
            Row(TORCH_FLEX, asked, T, S, density=density), partial(torch_ms, torch, run, args.repeats)
        )


def flex_mask(work: Workload, density: float, device: str) -> tuple[Any, float]:
    """torch's BlockMask that keeps the same number of random 128×128 blocks in every row, and the density
    that it has.

    The kept blocks are given as full ones: the kernel evaluates no mask function inside a block.
    """
    import torch
    from torch.nn.attention.flex_attention import BlockMask

    rows, columns = math.ceil(work.patches / FLEX_BLOCK), math.ceil(work.kv_len / FLEX_BLOCK)
    kept = max(1, round(density * columns))
    chosen = (
        torch.rand(1, work.num_heads, rows, columns, device=device).argsort(-1)[..., :kept].sort(-1).values
    )
    indices = torch.zeros(1, work.num_heads, rows, columns, dtype=torch.int32, device=device)
    indices[..., :kept] = chosen
    counts = torch.full(indices.shape[:-1], kept, dtype=torch.int32, device=device)
    mask = BlockMask.from_kv_blocks(
        torch.zeros_like(counts),
        torch.zeros_like(indices),
        counts,
        indices,
        BLOCK_SIZE=FLEX_BLOCK,
        seq_lengths=(work.patches, work.kv_len),
        compute_q_blocks=False,  # only a backward pass walks the columns
    )
    return mask, kept / columns
