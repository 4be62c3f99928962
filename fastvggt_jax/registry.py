"""Named things that can be added to: models, data sets, formats of files, sources of pictures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from fastvggt_jax.errors import InputError

T = TypeVar("T")


class Registry(Generic[T]):
    """Things by their names, in order. One that stands here as "module:attribute" is imported when it is
    asked for.

    A package adds to it by `register`, or so that commands find it too by an entry point: in its
    pyproject.toml, `[project.entry-points."fastvggt_jax.KIND"]` with a line `NAME = "module:attribute"`.
    """

    def __init__(self, kind: str, entries: Mapping[str, T | str], *, newest_first: bool = False) -> None:
        """kind: what one is called in sentences, "data set"; its entry points are "fastvggt_jax.data_set".
        newest_first: what is added stands before all others instead of after them.
        """
        self.kind = kind
        self.newest_first = newest_first
        self._own: dict[str, T | str] = dict(entries)

    @cached_property
    def _entries(self) -> dict[str, T | str]:
        found = entry_points(group=f"fastvggt_jax.{self.kind.replace(' ', '_')}")
        added: dict[str, T | str] = {
            point.name: point.value for point in found if point.name not in self._own
        }
        return added | self._own if self.newest_first else self._own | added

    def register(self, name: str, thing: T | str) -> None:
        """Adds one. InputError for a name that is taken."""
        if name in self._entries:
            raise InputError(f"there is a {self.kind} {name!r} already", argument="name")
        before = dict(self._entries) if self.newest_first else {}
        for one in before:
            del self._entries[one]
        self._entries[name] = thing
        self._entries.update(before)

    @contextlib.contextmanager
    def registered(self, name: str, thing: T | str) -> Iterator[None]:
        """Adds one for the time of the block."""
        self.register(name, thing)
        try:
            yield
        finally:
            del self._entries[name]

    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def where(self, name: str) -> str | None:
        """The "module:attribute" that a thing stands here as; None if it is here itself."""
        entry = self._entries[name]
        return entry if isinstance(entry, str) else None

    def find(self, name: str, argument: str | None = None) -> T:
        """The thing of that name. Raises InputError, of this argument, for an unknown one."""
        if name not in self._entries:
            text = f"there is no {self.kind} {name!r}; there are {', '.join(self._entries)}"
            raise InputError(text, argument=argument)
        entry: Any = self._entries[name]
        if isinstance(entry, str):
            module, _, path = entry.partition(":")
            entry = import_module(module)
            for attribute in path.split("."):
                entry = getattr(entry, attribute)
        return entry
