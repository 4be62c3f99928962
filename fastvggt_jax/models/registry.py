"""The models that there are, each by its name; a model's modules are imported when it is asked for.

To add one: its class, a `Model`, in a file of this folder, the rules of its official weights in `convert/`,
and a line here. From outside the package, `register` does the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib import import_module
from typing import NamedTuple

from fastvggt_jax.errors import InputError
from fastvggt_jax.models.base import Model


class Entry(NamedTuple):
    """model: "module:Class". rules: the module that converts its official weights, or None."""

    model: str
    rules: str | None


MODELS = {
    "vggt": Entry("fastvggt_jax.models.vggt:VGGT", "convert.vggt"),
    "pi3": Entry("fastvggt_jax.models.pi3:Pi3", "convert.pi3"),
}


def register(name: str, model: str, rules: str | None = None) -> None:
    """Adds a model of your own: its class as "module:Class", and the module of its conversion rules if it has
    any.
    """
    MODELS[name] = Entry(model, rules)


@contextlib.contextmanager
def registered(name: str, model: str, rules: str | None = None) -> Iterator[None]:
    """Adds a model for the time of the block."""
    before = dict(MODELS)
    register(name, model, rules)
    try:
        yield
    finally:
        MODELS.clear()
        MODELS.update(before)


def names() -> tuple[str, ...]:
    return tuple(MODELS)


def find(name: str) -> type[Model]:
    """The class of a model, by its name here ("vggt") or its class's ("VGGT"), which weight files hold.

    Raises InputError for a name that is unknown.
    """
    for key, entry in MODELS.items():
        module, _, cls = entry.model.partition(":")
        if name in (key, cls):
            return getattr(import_module(module), cls)
    raise InputError(f"there is no model {name!r}; there are {', '.join(MODELS)}", argument="model")


def name_of(model: Model | type[Model]) -> str:
    """The name under which a model, or its class, stands here."""
    cls = model if isinstance(model, type) else type(model)
    path = f"{cls.__module__}:{cls.__qualname__}"
    for key, entry in MODELS.items():
        if entry.model == path:
            return key
    raise InputError(
        f"{path} is not registered: fastvggt_jax.models.registry.register(name, {path!r})", argument="model"
    )
