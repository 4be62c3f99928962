"""The models that there are, each by its name; a model's modules are imported when it is asked for.

To add one: its class, a `Model`, in a file of this folder, the rules of its official weights in `convert/`,
and a line here. From outside the package, `register`, or an entry point (see `Registry`).
"""

from __future__ import annotations

from fastvggt_jax.errors import InputError
from fastvggt_jax.models.base import Model
from fastvggt_jax.registry import Registry

MODELS: Registry[type[Model]] = Registry(
    "model",
    {
        "vggt": "fastvggt_jax.models.vggt:VGGT",
        "pi3": "fastvggt_jax.models.pi3:Pi3",
        "pi3x": "fastvggt_jax.models.pi3x:Pi3X",
    },
)
register, registered, names = MODELS.register, MODELS.registered, MODELS.names


def find(name: str) -> type[Model]:
    """The class of a model, by its name here. Raises InputError for a name that is unknown."""
    return MODELS.find(name, argument="model")


def of_class(name: str) -> type[Model]:
    """A model's class by that class's name, which weight files hold. InputError for an unknown one."""
    for key in names():
        path = MODELS.where(key)
        if name == (path.partition(":")[2] if path else find(key).__name__):
            return find(key)
    raise InputError(f"no model's class is called {name!r}; there are {', '.join(names())}")


def path_of(model: Model | type[Model]) -> str:
    """ "module:Class" """
    cls = model if isinstance(model, type) else type(model)
    return f"{cls.__module__}:{cls.__qualname__}"


def name_of(model: Model | type[Model]) -> str:
    """The name under which a model, or its class, stands here."""
    path = path_of(model)
    for key in names():
        if path == (MODELS.where(key) or path_of(find(key))):
            return key
    text = f"{path} is not registered: fastvggt_jax.models.registry.register(name, {path!r})"
    raise InputError(text, argument="model")
