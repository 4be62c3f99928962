"""How Pallas' calls stand in a program."""

from __future__ import annotations

from collections.abc import Callable

import jax


def droppable(call: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A `pallas_call` that dead-code elimination may take out as a whole.

    From jax 0.11.2 on a bare one always stays, and then Flax's `nn.scan`, which looks for what does not
    depend on the step, finds that something does and refuses to run the layers. Within jit it goes.
    """
    return jax.jit(call)
