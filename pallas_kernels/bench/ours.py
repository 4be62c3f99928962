"""The rows of this package's own operations."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import BlockMask, block_sparse_attention, pooled_block_mask, to_float8
from pallas_kernels.bench import errors
from pallas_kernels.bench.table import FLOAT8, KERNEL, MASK, SUM, Row, attempt
from pallas_kernels.bench.workloads import Workload, random_qkv
from pallas_kernels.timing import jax_ms

Array = jax.Array


def ours_rows(args: argparse.Namespace, work: Workload) -> Iterator[Row]:
    """Mask, kernel and both, density by density; and the kernel with q and k of 8 bits, if asked for."""
    implementation = args.implementation
    choices = [f"{implementation=}"] if implementation else _log_messages()
    q, patch_k, k, v = _arrays(args, work)
    attend = partial(block_sparse_attention, implementation=implementation)
    for asked in args.density:
        select, both = _select(args, work, asked), _both(args, work, asked)
        mask = jax.jit(select)(q, patch_k)
        ours = Row("", asked, work.patches, work.kv_len, density=float(mask.density))
        measure = partial(jax_ms, repeats=args.repeats)
        check = partial(_error, args=args, work=work.reduced(), asked=asked)
        yield attempt(
            dataclasses.replace(ours, what=MASK),
            partial(measure, select, q, patch_k),
            partial(check, MASK),
        )
        yield attempt(
            dataclasses.replace(ours, what=KERNEL),
            partial(measure, attend, q, k, v, mask),
            partial(check, KERNEL),
        )
        yield attempt(
            dataclasses.replace(ours, what=SUM, note="; ".join(choices)),
            partial(measure, both, q, patch_k, k, v),
            partial(check, SUM),
        )
        if args.float8_scores:
            rounded = lambda q, k, v, mask: attend(to_float8(q), to_float8(k), v, mask)
            yield attempt(
                dataclasses.replace(ours, what=FLOAT8),
                partial(measure, rounded, q, k, v, mask),
                partial(check, FLOAT8),
            )


def _arrays(args: argparse.Namespace, work: Workload) -> tuple[Array, Array, Array, Array]:
    """q, the patch keys, k, v. The patch keys are an argument of their own, as the model has them: cutting
    them out of k is no part of the mask.
    """
    q, k, v = random_qkv(work.patches, work.kv_len, work, args.dtype)
    return q * jnp.asarray(args.q_scale, q.dtype), k[:, : work.patches], k, v


def _select(args: argparse.Namespace, work: Workload, asked: float) -> Callable[..., BlockMask]:
    keep_count = max(1, round(asked * math.ceil(work.patches / args.block[1])))
    return partial(
        pooled_block_mask,
        keep_count=keep_count,
        block=tuple(args.block),
        kv_runs=work.kv_runs,
        implementation=args.implementation,
    )


def _both(args: argparse.Namespace, work: Workload, asked: float) -> Callable[..., Array]:
    select = _select(args, work, asked)
    attend = partial(block_sparse_attention, implementation=args.implementation)
    return lambda q, patch_k, k, v: attend(q, k, v, select(q, patch_k))


def _error(what: str, args: argparse.Namespace, work: Workload, asked: float) -> float:
    """Of a mask, the share of its blocks that float32 would not keep; else what
    `errors.max_relative_error` says, with 8 bits of the numbers that these hold.
    """
    q, patch_k, k, v = _arrays(args, work)
    select = _select(args, work, asked)
    mask = jax.jit(select)(q, patch_k)
    kept = np.asarray(mask.to_dense())[0]  # [N, Tb, Sb]
    if what == MASK:
        with jax.default_device(cpu := jax.devices("cpu")[0]):
            exact = jax.device_put((q, patch_k), cpu)
            exact = select(*(x.astype(jnp.float32) for x in exact), implementation="reference")
            return float((kept & ~np.asarray(exact.to_dense())[0]).sum() / kept.sum())
    if what == FLOAT8:
        q, k = to_float8(q), to_float8(k)
    if what in (KERNEL, FLOAT8):
        attend = partial(block_sparse_attention, implementation=args.implementation)
        out = jax.jit(attend)(q, k, v, mask)
    else:
        out = jax.jit(_both(args, work, asked))(q, patch_k, k, v)
    keep = errors.of_tokens(kept, work.patches, work.kv_runs, mask.block)
    return errors.max_relative_error(out, errors.exact(q, k, v, keep))


class _Messages(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def _log_messages() -> list[str]:
    """A list that fills with what `pallas_kernels` logs: which implementation serves where none is named."""
    messages = _Messages()
    logger = logging.getLogger("pallas_kernels")
    logger.addHandler(messages)
    logger.setLevel(logging.INFO)
    return messages.texts
