"""What conversion knows of one model: the `TABLE` of its rules module, which `fastvggt_jax.models.registry`
names.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

from convert.official import Official
from convert.rules import Rule
from fastvggt_jax.errors import InputError
from fastvggt_jax.io.weights import UNKNOWN as UNKNOWN_LICENCE
from fastvggt_jax.models import registry
from fastvggt_jax.models.base import Model


@dataclasses.dataclass(frozen=True)
class Variant:
    """Checkpoints of one architecture that their keys do not tell apart.

    Attributes:
      fields: of the model, that it sets.
      word: a part of the checkpoint's name that tells it; None for what is assumed without one.
      effect: what is different, for the report.
      head: the head that it is about: without it there is nothing to tell.
    """

    fields: Mapping[str, Any]
    word: str | None
    effect: str
    head: str


@dataclasses.dataclass(frozen=True)
class Repository:
    """A published checkpoint on the Hugging Face hub: its file, and the licence that holds for it."""

    file: str
    licence: str = UNKNOWN_LICENCE


@dataclasses.dataclass(frozen=True)
class Table:
    """How official checkpoints of a model become weights of ours.

    Attributes:
      key: pattern of the keys by which a checkpoint is known to be one of this model.
      rules: which official key becomes which parameter. ignore: pattern of keys that are rightly left out ->
        reason.
      official: how a configuration in upstream's words describes the model.
      sizes: what the class's defaults are the sizes of, in words.
      others: pattern of a key that only another model has, which has the rest too: its checkpoints are not
        this one's.
      variants: by name.
      published: by the name of the repository.
    """

    key: str
    rules: tuple[Rule, ...]
    ignore: Mapping[str, str]
    official: Official
    sizes: str
    others: str | None = None
    variants: Mapping[str, Variant] = dataclasses.field(default_factory=dict)
    published: Mapping[str, Repository] = dataclasses.field(default_factory=dict)

    def recognises(self, keys: Iterable[str]) -> bool:
        keys = list(keys)
        has = lambda pattern: any(re.fullmatch(pattern, key) for key in keys)
        return has(self.key) and not (self.others and has(self.others))

    def heads_in(self, cls: type[Model], heads: tuple[str, ...], keys: Iterable[str]) -> tuple[str, ...]:
        """Those of the heads of which a checkpoint with these keys has a parameter."""
        named = {hit[0] for key in keys for rule in self.rules if (hit := rule.apply(key))}
        return tuple(
            head for head in heads if any(name.startswith(cls.head_parameters(head)) for name in named)
        )


def tables() -> dict[str, tuple[type[Model], Table]]:
    """Of every model that has rules, by its name in the registry."""
    found = {}
    for name in registry.names():
        cls = registry.find(name)
        if cls.conversion:
            found[name] = cls, import_module(cls.conversion).TABLE
    return found


def published() -> dict[str, Repository]:
    """Of all models, by the name of the repository."""
    return {name: one for _, table in tables().values() for name, one in table.published.items()}


def find(name: str) -> tuple[type[Model], Table]:
    """A model's class and table. Raises InputError for an unknown model, or one without rules."""
    found = tables()
    if name not in found:
        text = f"model must be one that can be converted ({', '.join(found)}), not {name!r}"
        raise InputError(text, argument="model")
    return found[name]
