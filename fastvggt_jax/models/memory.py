"""What a program needs of the device's memory, and arrays in it that wait in the host's meanwhile."""

from __future__ import annotations

from typing import Any

import jax

Array = jax.Array


def needed_bytes(program: jax.stages.Compiled) -> int | None:
    """On the device, of parameters, inputs, results and what lies between; None where nobody knows."""
    sizes: Any = program.memory_analysis()
    if sizes is None:
        return None
    return sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes


def memory_limit() -> int | None:
    """Bytes of the device's memory that JAX may use; None where JAX knows of no limit, as on a CPU."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def fits(program: jax.stages.Compiled) -> bool:
    """Whether the device's memory holds what a program needs; True where nobody knows."""
    needed, limit = needed_bytes(program), memory_limit()
    return needed is None or not limit or needed <= limit


def on_host(x: Array) -> Array:
    """In the host's memory, if that is another than the device's; `on_device` brings a part of it back."""
    return jax.device_put(x, jax.memory.Space.Host) if jax.default_backend() != "cpu" else x


def on_device(x: Array) -> Array:
    """Where products are computed."""
    return jax.device_put(x, jax.memory.Space.Device) if jax.default_backend() != "cpu" else x
