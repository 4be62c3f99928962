"""Attention of others that PyTorch runs, dense and block-sparse.

A peer is a function of q [1, T, N, H], k, v [1, S, N, H], of the key blocks that each query block keeps,
bool[N, Tb, Sb], and of the block; dense ones are given None for both. It makes ready what its library wants,
which is not timed, and returns the call that is: of no argument, giving [1, T, N, H].
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

from pallas_kernels.bench import errors
from pallas_kernels.bench.table import Peer, Row, attempt
from pallas_kernels.bench.workloads import Workload
from pallas_kernels.timing import torch_ms

Tensor = Any  # torch's, which is imported where it is used
Run = Callable[[], Tensor]
Block = tuple[int, int]


def _sdpa(backend: str, q: Tensor, k: Tensor, v: Tensor) -> Run:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    q, k, v = (_heads_first(x) for x in (q, k, v))

    def run() -> Tensor:
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return scaled_dot_product_attention(q, k, v).transpose(1, 2)

    return run


def flash_attention_2(q: Tensor, k: Tensor, v: Tensor, kept: None, block: None) -> Run:
    return _sdpa("FLASH_ATTENTION", q, k, v)


def cudnn(q: Tensor, k: Tensor, v: Tensor, kept: None, block: None) -> Run:
    return _sdpa("CUDNN_ATTENTION", q, k, v)


def flash_attention_3(q: Tensor, k: Tensor, v: Tensor, kept: None, block: None) -> Run:
    from fa3_fwd_interface import flash_attn_func

    return lambda: flash_attn_func(q, k, v)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    """One program: all densities have arrays of the same shapes."""
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def flex_attention(q: Tensor, k: Tensor, v: Tensor, kept: Tensor, block: Block) -> Run:
    mask = flex_mask(kept, block, q.shape[1], k.shape[1])
    q, k, v = (_heads_first(x) for x in (q, k, v))
    attend = _compiled_flex()
    return lambda: attend(q, k, v, block_mask=mask).transpose(1, 2)


def flex_mask(kept: Tensor, block: Block, T: int, S: int) -> Any:
    """torch's BlockMask. The kept blocks are given as full ones: the kernel evaluates no mask function inside
    a block.
    """
    import torch
    from torch.nn.attention.flex_attention import BlockMask

    counts, indices = block_lists(kept)
    none = torch.zeros_like
    sizes = {"BLOCK_SIZE": block, "seq_lengths": (T, S)}
    # Only a backward pass walks the columns.
    return BlockMask.from_kv_blocks(
        none(counts), none(indices), counts, indices, **sizes, compute_q_blocks=False
    )


def flash_attention_4(q: Tensor, k: Tensor, v: Tensor, kept: Tensor, block: Block) -> Run:
    """Its CuTe kernels, compiled at the first call."""
    import torch
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch
    from flash_attn.cute.interface import flash_attn_func

    counts, indices = block_lists(kept)
    none = torch.zeros_like
    mask = BlockSparseTensorsTorch(none(counts), none(indices), counts, indices, block_size=block)

    def run() -> Tensor:
        out = flash_attn_func(q, k, v, block_sparse_tensors=mask)
        return out[0] if isinstance(out, tuple) else out

    return run


def flashinfer(q: Tensor, k: Tensor, v: Tensor, kept: Tensor, block: Block) -> Run:
    """Its kernels for masks that differ by head, compiled at the first call: they gather single keys."""
    import torch
    from flashinfer import VariableBlockSparseAttentionWrapper

    empty = partial(torch.empty, device=q.device)
    (_, T, N, H), S = q.shape, k.shape[1]
    wrapper = VariableBlockSparseAttentionWrapper(empty(128 << 20, dtype=torch.uint8))
    rows, columns = (
        torch.tensor([errors.block_sizes((n,), size)] * N, dtype=torch.int32, device=q.device)
        for n, size in ((T, block[0]), (S, block[1]))
    )
    # It has room for 2^27 keys, all heads' and query blocks' together, and asks for one more.
    keys = int((kept * columns[:, None]).sum())
    wrapper.reset_workspace_buffer(
        empty(128 << 20, dtype=torch.uint8),
        empty(64 << 20, dtype=torch.uint8),
        empty(keys + 1, dtype=torch.int32),
        empty(2 * kept.shape[0] * kept.shape[1] + 2, dtype=torch.int32),
    )
    wrapper.plan(kept, rows, columns, N, N, H, q_data_type=q.dtype)
    q, k, v = (_heads_first(x)[0] for x in (q, k, v))
    return lambda: wrapper.run(q, k, v).transpose(0, 1)[None]


def _heads_first(x: Tensor) -> Tensor:
    """[1, T, N, H] -> [1, N, T, H], contiguous."""
    return x.transpose(1, 2).contiguous()


def block_lists(kept: Tensor) -> tuple[Tensor, Tensor]:
    """bool[N, Tb, Sb] -> i32[1, N, Tb] counts, i32[1, N, Tb, Sb] numbers of the kept blocks in order, then of
    the others.
    """
    order = kept.byte().argsort(dim=-1, descending=True, stable=True)
    return kept.sum(-1).int()[None], order.int()[None]


def random_blocks(work: Workload, density: float, block: Block, device: str) -> Tensor:
    """bool[N, Tb, Sb] that keeps the same number of random blocks in every row. Special keys are keys like
    the others.
    """
    import torch

    rows, columns = math.ceil(work.patches / block[0]), math.ceil(work.kv_len / block[1])
    kept = max(1, round(density * columns))
    return torch.rand(work.num_heads, rows, columns, device=device).argsort(-1).argsort(-1) < kept


def prepare(
    peer: Peer, args: argparse.Namespace, work: Workload, asked: float | None
) -> tuple[Run, Any, Any]:
    """The call, (q, k, v) and what is kept: random numbers and random blocks."""
    import torch

    shapes = [(1, n, work.num_heads, work.head_dim) for n in (work.patches, work.kv_len, work.kv_len)]
    qkv = [torch.randn(shape, device="cuda", dtype=getattr(torch, args.dtype)) for shape in shapes]
    block = peer.mask_block(args)
    kept = random_blocks(work, asked, block, "cuda") if asked and block else None
    return peer.function(*qkv, kept, block), qkv, kept


def error(peer: Peer, args: argparse.Namespace, work: Workload, asked: float | None) -> float:
    run, qkv, kept = prepare(peer, args, work, asked)
    out, q, k, v = (x.float().cpu().numpy() for x in (run(), *qkv))
    block, keep = peer.mask_block(args), None
    if kept is not None and block:
        keep = errors.of_tokens(kept.cpu().numpy(), work.patches, (work.kv_len,), block)
    return errors.max_relative_error(out, errors.exact(q, k, v, keep))


def torch_rows(peers: tuple[Peer, ...], args: argparse.Namespace, work: Workload) -> Iterator[Row]:
    """Of each peer one row, or one for every density."""
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} sees no CUDA GPU")
    torch.set_grad_enabled(False)
    for peer in peers:
        block = peer.mask_block(args)
        for asked in peer.asked(args):
            density = 1.0
            if asked and block:
                columns = math.ceil(work.kv_len / block[1])
                density = max(1, round(asked * columns)) / columns

            def measure(peer: Peer = peer, asked: float | None = asked) -> float:
                return torch_ms(torch, prepare(peer, args, work, asked)[0], args.repeats)

            yield attempt(
                Row(peer.what(args), asked, work.patches, work.kv_len, density=density),
                measure,
                partial(error, peer, args, work.reduced(), asked),
            )
