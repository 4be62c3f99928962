"""Arrays within a program that wait in the host's memory while the device's is scarce."""

from __future__ import annotations

import jax

Array = jax.Array


def on_host(x: Array) -> Array:
    """In the host's memory, if that is another than the device's; `on_device` brings a part of it back."""
    return jax.device_put(x, jax.memory.Space.Host) if jax.default_backend() != "cpu" else x


def on_device(x: Array) -> Array:
    """Where products are computed."""
    return jax.device_put(x, jax.memory.Space.Device) if jax.default_backend() != "cpu" else x
