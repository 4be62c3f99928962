"""The rows of this package's own operations."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels import block_sparse_attention, pooled_block_mask
from pallas_kernels.bench.table import KERNEL, MASK, SUM, Row, attempt
from pallas_kernels.bench.workloads import Workload, random_qkv
from pallas_kernels.timing import jax_ms


def ours_rows(args: argparse.Namespace, work: Workload) -> Iterator[Row]:
    """Mask, kernel and both, density by density."""
    T, S, implementation = work.patches, work.kv_len, args.implementation
    choices = [f"{implementation=}"] if implementation else _log_messages()
    q, k, v = random_qkv(T, S, work, args.dtype)
    q = q * jnp.asarray(args.q_scale, q.dtype)
    patch_k = k[
        :, :T
    ]  # an argument of its own, as the model has it: cutting it out of k is no part of the mask
    for asked in args.density:
        keep_count = max(1, round(asked * math.ceil(T / args.block[1])))
        select = partial(
            pooled_block_mask,
            keep_count=keep_count,
            block=tuple(args.block),
            kv_runs=work.kv_runs,
            implementation=implementation,
        )
        attend = partial(block_sparse_attention, implementation=implementation)
        both = lambda q, patch_k, k, v, select=select, attend=attend: attend(q, k, v, select(q, patch_k))
        mask = jax.jit(select)(q, patch_k)
        ours = Row("", asked, T, S, density=float(mask.density))
        measure = partial(jax_ms, repeats=args.repeats)
        yield attempt(dataclasses.replace(ours, what=MASK), partial(measure, select, q, patch_k))
        yield attempt(dataclasses.replace(ours, what=KERNEL), partial(measure, attend, q, k, v, mask))
        yield attempt(
            dataclasses.replace(ours, what=SUM, note="; ".join(choices)),
            partial(measure, both, q, patch_k, k, v),
        )


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
