"""What an implementation is, and the registry of those there are.

An implementation computes masks, attention or both, and says for which requests it cannot. Nothing outside
this package knows one by name: `choose` asks them in order. To add one, write a child of `Implementation` in
a file or folder of its own and `register` it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.block_mask import DEFAULT_BLOCK, BlockMask

Array = jax.Array
MASK, ATTENTION = "pooled_block_mask", "block_sparse_attention"  # the operations


@dataclasses.dataclass(frozen=True)
class Device:
    """Where a request runs.

    Attributes:
      platform: "cpu", "gpu" or "tpu".
      kind: the device's name, such as "NVIDIA H100 80GB HBM3".
      compute_capability: of a GPU, such as "9.0".
    """

    platform: str
    kind: str
    compute_capability: str | None = None


@dataclasses.dataclass(frozen=True)
class Request:
    """What the choice of an implementation may see.

    Attributes:
      operation: MASK or ATTENTION.
      B, T, S, N, H: batch, queries, keys (of a mask: the pooled ones), heads, head dim.
      dtype: of q and k; of v, where there is one. Of 8 bits it is said to be bfloat16.
      block: (queries, keys) of a block of the mask.
      device: where it runs.
      sharded: whether the arrays are spread over several devices, see `is_sharded`.
      config: the tuning config that the caller gave.
      lengths: whether how many tokens count is known at run time only, see `Lengths`.
    """

    operation: str
    B: int
    T: int
    S: int
    N: int
    H: int
    dtype: np.dtype
    block: tuple[int, int]
    device: Device
    sharded: bool = False
    config: Any = None
    lengths: bool = False

    @classmethod
    def of(
        cls,
        operation: str,
        q: Array,
        k: Array,
        block: tuple[int, int],
        config: Any = None,
        v: Array | None = None,
        lengths: bool = False,
    ) -> Request:
        """For q [B, T, N, H] and k, v [B, S, N, H]."""
        B, T, N, H = q.shape
        dtype = np.dtype((k if v is None else v).dtype)
        if dtype == jnp.float8_e4m3fn:
            dtype = np.dtype(jnp.bfloat16)  # which holds the same numbers
        where = device_of(q), is_sharded(q, k)
        return cls(operation, B, T, k.shape[1], N, H, dtype, block, *where, config, lengths)


def device_of(x: Array | None = None) -> Device:
    """The device of x; where that cannot be seen, as under jit, the one that JAX computes on by default."""
    if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer):
        device = min(x.devices(), key=lambda device: device.id)
    else:
        # A device, a platform's name or nothing.
        default: Any = getattr(jax.config, "jax_default_device")  # noqa: B009  its stubs do not know it
        device = default if isinstance(default, jax.Device) else jax.local_devices(backend=default)[0]
    return Device(device.platform, device.device_kind, getattr(device, "compute_capability", None))


def is_sharded(*arrays: Array) -> bool:
    """Whether one of them lies on a mesh of several devices, replicated or not, that XLA has to partition the
    program for. Inside `jax.shard_map` arrays are local. A mesh that XLA learns only after tracing, as by
    `in_shardings` of jit, is not seen.
    """
    return any(map(_is_on_several_devices, arrays))


def _is_on_several_devices(x: Array) -> bool:
    if not isinstance(x, jax.Array):
        return False
    if not isinstance(x, jax.core.Tracer):
        return len(x.sharding.device_set) > 1
    mesh = jax.typeof(x).sharding.mesh
    manual = jax.sharding.AxisType.Manual
    return any(
        size > 1 for size, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True) if kind != manual
    )


@dataclasses.dataclass(frozen=True)
class Product:
    """What the choice of a kernel for gelu(x w + bias) may see: x is [M, K] and w [K, N], of one dtype."""

    M: int
    K: int
    N: int
    dtype: np.dtype
    device: Device
    sharded: bool = False


class Implementation:
    """One way of computing masks, attention or both. A child sets what differs from what stands here.

    Attributes:
      name: what `implementation=` calls it.
      operations: MASK, ATTENTION or both; the other method need not be written.
      dtypes: names of the dtypes that it takes; None: every one.
      partitioned: whether XLA can partition it where the arrays are sharded; a Pallas kernel it cannot.
      differentiable: whether `attend` has a derivative.
      takes_runs: whether `attend` takes k and v as an array per run, too, see `api.block_sparse_attention`.
      takes_float8: whether `attend` takes q and k of float8_e4m3fn; else it gets them in v's dtype.
      takes_lengths: whether it takes masks with `Lengths`, and makes them.
      compiles_in_threads: whether several programs with it may be compiled at the same time.
      everywhere: whether it serves every request on every device.
      slow_on: platforms where it only serves for want of a better one, which the log then says.
      config_type: a frozen dataclass, how attention cuts its work, which may change the speed and never the
        answer; None: there is nothing to tune.
    """

    name: str
    operations: tuple[str, ...] = (MASK, ATTENTION)
    dtypes: tuple[str, ...] | None = None
    partitioned: bool = True
    differentiable: bool = False
    takes_runs: bool = False
    takes_float8: bool = False
    takes_lengths: bool = False
    compiles_in_threads: bool = True
    everywhere: bool = False
    slow_on: tuple[str, ...] = ()
    config_type: type[Any] | None = None

    def why_not_on(self, device: Device) -> str | None:
        """Why it serves no request on such a device, as a clause ("it needs ..."); None if it serves some."""
        return None

    def why_not(self, request: Request) -> str | None:
        """Why it cannot serve this request, as a clause; None if it can. A child asks this one first."""
        if request.operation not in self.operations:
            return f"it does not compute {request.operation}"
        if reason := self.why_not_on(request.device):
            return reason
        if self.dtypes is not None and request.dtype.name not in self.dtypes:
            return f"it takes {' and '.join(self.dtypes)}, not {request.dtype.name}"
        if request.sharded and not self.partitioned:
            return "the arrays are sharded over several devices: call it inside jax.shard_map"
        if request.lengths and not self.takes_lengths:
            return "it does not take how many tokens count at run time only (lengths)"
        return None

    def beats_dense(self, request: Request) -> bool:
        """Whether `attend`, nothing dropped, is faster here than the dense attention that comes with XLA."""
        return False

    def mask(
        self,
        q: Array,
        k: Array,
        *,
        kv_runs: tuple[int, ...],
        block: tuple[int, int],
        keep_count: int | Array | None,
        cdf_threshold: float | Array | None,
        pool: str,
        **lengths: Any,
    ) -> BlockMask:
        """See `api.pooled_block_mask`, which has checked the arguments; `lengths` and `k_length` come only
        where it `takes_lengths` and they are given.
        """
        raise NotImplementedError(f"{self.name!r} does not compute {MASK}")

    def attend(self, q: Array, k: Array, v: Array, block_mask: BlockMask, config: Any = None) -> Array:
        """See `api.block_sparse_attention`, which has checked the arguments; `config` is a `config_type`."""
        raise NotImplementedError(f"{self.name!r} does not compute {ATTENTION}")

    def beats_matmul_gelu(self, product: Product) -> bool:
        """Whether `matmul_gelu` serves this product and is faster than XLA's product and GELU."""
        return False

    def matmul_gelu(self, x: Array, w: Array, bias: Array) -> Array:
        """See `api.matmul_gelu`."""
        raise NotImplementedError(f"{self.name!r} does not compute matmul_gelu")

    def tuning_key(self, head_dim: int, block: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        """The head dim and the block that a config is measured and looked up for: those that the kernel runs,
        where it rounds up what it is given.
        """
        return head_dim, block

    def search_space(self, head_dim: int, block: tuple[int, int], device: Device | None = None) -> list[Any]:
        """Every config that can run a `tuning_key`."""
        return []

    def heuristic(self, head_dim: int, block: tuple[int, int], device: Device | None = None) -> Any:
        """The config for a `tuning_key` that was not measured on the device, or on the least one that serves;
        None where none fits.
        """
        return None


_implementations: dict[str, Implementation] = {}  # in the order in which they are tried


def register(implementation: Implementation, before: str | None = None) -> None:
    """Adds an implementation, to be tried just before the one named `before`; default: before all others.

    What was traced earlier, as by jit, keeps its choice. ValueError for a name that is taken, or a `before`
    that is none.
    """
    if implementation.name in _implementations:
        raise ValueError(f"there is an implementation {implementation.name!r} already")
    if before is not None and before not in _implementations:
        raise ValueError(f"{before=} must be None or one of {names()}")
    order = list(_implementations.values())
    order.insert(0 if before is None else names().index(before), implementation)
    _implementations.clear()
    _implementations.update((one.name, one) for one in order)


@contextmanager
def registered(implementation: Implementation, before: str | None = None) -> Iterator[None]:
    """`register` for a with statement, after which the implementation is gone again."""
    register(implementation, before)
    try:
        yield
    finally:
        del _implementations[implementation.name]


@contextmanager
def only(*kept: str) -> Iterator[None]:
    """For a with statement in which these implementations alone are tried, and those that serve everywhere:
    what a device that lacks the others would do. ValueError for a name that is none.
    """
    before = dict(_implementations)
    for name in kept:
        find(name)
    for name, one in before.items():
        if name not in kept and not one.everywhere:
            del _implementations[name]
    try:
        yield
    finally:
        _implementations.clear()
        _implementations.update(before)


def names() -> tuple[str, ...]:
    """Of all implementations, in the order in which they are tried."""
    return tuple(_implementations)


def find(name: str) -> Implementation:
    """ValueError for a name that is none."""
    if name not in _implementations:
        raise ValueError(f"implementation={name!r} must be None or one of {names()}")
    return _implementations[name]


def choose(request: Request, name: str | None = None) -> tuple[Implementation, list[str]]:
    """The named implementation, or the first that can serve the request; and why those before it cannot.

    NotImplementedError where the named one, or every one, cannot; ValueError for an unknown name.
    """
    reasons: list[str] = []
    for implementation in _implementations.values() if name is None else [find(name)]:
        reason = implementation.why_not(request)
        if reason is None:
            return implementation, reasons
        reasons.append(f"{implementation.name!r} cannot do this: {reason}")
    raise NotImplementedError("; ".join(reasons))


def cudnn_serves(q: Array) -> bool:
    """Whether cuDNN's dense attention, which JAX has, runs for such queries: on GPUs of NVIDIA of compute
    capability 8.0 or more, of numbers of 16 bits.
    """
    device = device_of(q)
    if device.platform != "gpu" or not device.kind.startswith("NVIDIA") or q.dtype.itemsize != 2:
        return False
    return float(device.compute_capability or 0) >= 8


def faster_dense(q: Array, k: Array, v: Array | None = None, *, lengths: bool = False) -> str | None:
    """Name of the implementation whose block-sparse attention, given `BlockMask.full`, is faster here than
    the dense attention that comes with XLA: for q [B, T, N, H] and k, v [B, S, N, H]; None if there is none.

    lengths: whether the mask will have `Lengths`.
    """
    request = Request.of(ATTENTION, q, k, DEFAULT_BLOCK, v=v, lengths=lengths)
    for implementation in _implementations.values():
        if implementation.beats_dense(request) and implementation.why_not(request) is None:
            return implementation.name
    return None


def faster_matmul_gelu(x: Array, w: Array) -> str | None:
    """Name of the implementation whose `matmul_gelu` of x [..., K] and w [K, N] is faster here than XLA's
    product and GELU; None if there is none.
    """
    if x.dtype != w.dtype or x.ndim < 2 or w.ndim != 2:
        return None
    M, dtype = math.prod(x.shape[:-1]), np.dtype(x.dtype)
    product = Product(M, w.shape[0], w.shape[1], dtype, device_of(x), is_sharded(x, w))
    return next((one.name for one in _implementations.values() if one.beats_matmul_gelu(product)), None)


def slower_sparse(dtype: Any, head_dim: int, block: tuple[int, int]) -> str | None:
    """Why block-sparse attention is slower than dense attention on the default device: what serves it only
    does so for want of the kernels, whose reasons these are; None where it is not.
    """
    device = device_of()
    request = Request(ATTENTION, 1, block[0], block[1], 1, head_dim, np.dtype(dtype), block, device)
    chosen, reasons = choose(request)
    return "; ".join(reasons) if device.platform in chosen.slow_on else None


def unused_float8(dtype: Any, head_dim: int, keys: int, block: tuple[int, int] | None) -> str | None:
    """Why attention to so many keys gains nothing from q and k of 8 bits on the default device; None where it
    does. block: of the mask; None: dense attention.
    """
    device, dtype = device_of(), np.dtype(dtype)
    request = Request(ATTENTION, 1, keys, keys, 1, head_dim, dtype, block or DEFAULT_BLOCK, device)
    if block is not None:
        chosen, reasons = choose(request)
        return None if chosen.takes_float8 else "; ".join([*reasons, f"{chosen.name!r} multiplies 16 bits"])
    taking = [one for one in _implementations.values() if one.takes_float8]
    serving = [one for one in taking if one.why_not(request) is None]
    if any(one.beats_dense(request) for one in serving):
        return None
    if serving:
        return f"dense attention to {keys} keys is left to a library, which takes 16 bits"
    return "; ".join(f"{one.name!r} cannot do this: {one.why_not(request)}" for one in taking)


def compiles_in_threads(dtype: Any) -> bool:
    """Whether programs that attend in this dtype may be compiled in several threads at the same time, on the
    default device and whichever implementation serves.
    """
    device, name = device_of(), np.dtype(dtype).name
    return all(
        one.compiles_in_threads
        or one.why_not_on(device) is not None
        or (one.dtypes is not None and name not in one.dtypes)
        for one in _implementations.values()
    )
