"""Flax without its slowest check, made once: what a parameter's initializer would give."""

import numpy as np
from flax.core.scope import Scope

compare, compared = Scope.param, set()


def param(scope, name, init, *args, **kwargs):
    """In place of Flax's, which traces the initializer of each parameter whenever a model is applied, to
    compare shapes, half the time of tracing the model: here what has been found to agree is not traced again.
    """
    given = scope.get_variable("params", name)
    cells = [cell.cell_contents for cell in getattr(init, "__closure__", None) or ()]
    comparison = (getattr(init, "__code__", init), repr((cells, args, kwargs)), np.shape(given))
    if given is not None and comparison in compared:
        scope.reserve(name, "params")
        return given
    found = compare(scope, name, init, *args, **kwargs)
    compared.add(comparison)
    return found


def install() -> None:
    Scope.param = param
