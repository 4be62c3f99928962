"""How loops are compiled: for a GPU into few and large kernels; for a CPU into little code, since that takes
longer to compile than to run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

UNROLL = 4


def on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def over_views(function: Callable[..., Any], views: Any) -> Any:
    """`function` of each view: all at once, but on a CPU one after another."""
    return jax.lax.map(function, views) if on_cpu() else jax.vmap(function)(views)


def together(steps: int) -> int:
    """How many steps of a loop over rays are compiled as one, with nothing written between them."""
    return 1 if on_cpu() else min(steps, UNROLL)
