"""Conversion of official PyTorch checkpoints to native weight files.

It is strict: a tensor that is missing, unexpected or misshaped ends it before anything is written. And it
streams: memory holds one official tensor at a time, whatever the size of the model.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from convert import hub, table
from convert.official import fields_of
from convert.rules import make_plan
from convert.sources import Source, open_source
from convert.table import Table
from fastvggt_jax.errors import InputError, MissingError, TargetError, WeightsError
from fastvggt_jax.io.files import check_name, warn_of_leftovers
from fastvggt_jax.io.json_files import read_json
from fastvggt_jax.io.tensors import listed, write_safetensors
from fastvggt_jax.io.weights import abstract_tensors, native_metadata
from fastvggt_jax.models.base import Model

FLOATS = ("float32", "bfloat16", "float16", "float64")
Progress = Callable[[int, int], None]  # tensors written, and how many there are


@dataclasses.dataclass(frozen=True)
class Report:
    """What a conversion has done; `lines` says it."""

    source: Source
    model: Model
    sizes: str
    variant: str | None
    ignored: tuple[tuple[str, str], ...]
    target: Path
    written: str
    license: str

    def lines(self) -> Iterator[str]:
        dtypes = ", ".join(sorted(set(self.source.dtypes.values())))
        yield f"read      {self.source.path}: {_count(self.source.shapes.values())}, {dtypes}"
        for note in self.source.notes:
            yield f"note      {note}"
        absent = [head for head in type(self.model)().heads if head not in self.model.heads]
        heads = (", ".join(self.model.heads) or "none") + (
            f" (not in it: {', '.join(absent)})" if absent else ""
        )
        yield f"model     {type(self.model).__name__}, sizes of {self.sizes}; heads: {heads}"
        if self.variant:
            yield f"variant   {self.variant}"
        for key, why in self.ignored:
            yield f"ignored   {key}: {why}"
        yield f"wrote     {self.target}: {self.written}"
        yield f"licence   of the weights: {self.license}"


def convert(
    source: str | Path,
    target: Path,
    *,
    model: str | None = None,
    config: Path | None = None,
    variant: str = "auto",
    dtype: str = "float32",
    ignore: Sequence[str] = (),
    overwrite: bool = False,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Converts an official checkpoint to the native file `target`, which is as it was before if anything goes
    wrong.

    Args:
      source: a safetensors file, a list of its shards, a file of PyTorch, a folder with one of these, or a
        hub repository (OWNER/NAME), of `revision`.
      ignore: regular expressions of whole keys that are left out; a prefix that all others share, such as
        "module.", is taken off.
      model: a name of the registry; None recognises it by its keys.
      config: a JSON file of sizes other than the released ones.
      variant: one of the table's, or "auto".
      dtype: "float32" or "bfloat16", of the written weights.

    Raises InputError, WeightsError, MissingError, TargetError, FileError, ExtraError, FailedError.
    """
    _check_target(target, overwrite)
    dropped = _patterns(ignore)
    repository = str(source) if hub.is_repository(str(source)) else None
    path = hub.fetch(repository, revision) if repository else Path(source)
    checkpoint = open_source(path)
    path = checkpoint.path
    if os.path.exists(target) and target.samefile(path):
        raise InputError(f"{target} is the checkpoint itself: write to another file", argument="target")
    checkpoint = _without(checkpoint, dropped)
    checkpoint = _without_prefix(checkpoint)
    cls, rules = table.find(_recognise(checkpoint, model))
    origin = f"{repository}/{path.name}" if repository else path.name
    network = _build(cls, rules, checkpoint, config)
    network, chosen = _choose_variant(network, rules, variant, origin, config)
    wanted = _abstract(network, config)
    sizes = str(config) if config else rules.sizes
    try:
        plan = make_plan(checkpoint.shapes, wanted, rules.rules, rules.ignore)
    except WeightsError as error:
        where = f"the sizes of {sizes}" + ("" if config else ", assumed for want of a config")
        raise WeightsError(f"{path} does not fit {where}: {error}", argument="config") from error
    odd = [
        f"{key} ({checkpoint.dtypes[key]})"
        for target_ in plan.targets
        for key in target_.keys
        if checkpoint.dtypes[key] not in FLOATS
    ]
    if odd:
        text = f"{path} holds numbers that are no weights: {listed(odd)}; they must be {', '.join(FLOATS)}"
        raise WeightsError(text)
    targets = {t.name: t for t in plan.targets}
    done = 0

    def chunks(name: str) -> Iterator[np.ndarray]:
        nonlocal done
        yield from targets[name].chunks(checkpoint.read, jnp.dtype(dtype))
        done += 1
        if progress is not None:
            progress(done, len(targets))

    license = hub.licence_of(repository)
    size = write_safetensors(
        target,
        {name: jax.ShapeDtypeStruct(t.shape, jnp.dtype(dtype)) for name, t in targets.items()},
        chunks,
        native_metadata(network, origin, license),
    )
    written = f"{_count(t.shape for t in plan.targets)}, {dtype}, {size / 1e9:.2f} GB"
    return Report(checkpoint, network, sizes, chosen, tuple(plan.ignored), target, written, license)


def _check_target(target: Path, overwrite: bool) -> None:
    """Finds out before a long download or read what would fail at its end."""
    if target.suffix != ".safetensors":
        text = f"{target} must end in .safetensors: that is what is written"
        raise InputError(text, argument="target")
    if os.path.isdir(target):
        raise TargetError(f"{target} is a folder: give the name of the file to write", argument="target")
    if os.path.exists(target) and not overwrite:
        raise TargetError(f"{target} exists already: give another name or overwrite it", argument="overwrite")
    if not os.path.isdir(target.parent):
        raise MissingError(f"the folder {target.parent} does not exist", argument="target")
    check_name(target, "target")
    warn_of_leftovers(target)


def _patterns(ignore: Sequence[str]) -> list[re.Pattern[str]]:
    try:
        return [re.compile(pattern) for pattern in ignore]
    except re.error as error:
        text = f"ignore must be regular expressions; {error.pattern!r} is none: {error}"
        raise InputError(text, argument="ignore") from error


def _without(checkpoint: Source, dropped: Sequence[re.Pattern[str]]) -> Source:
    """Without the keys that one of the patterns matches as a whole; each must match some."""
    keys = list(checkpoint.shapes)
    for pattern in dropped:
        if not any(pattern.fullmatch(key) for key in keys):
            text = f"ignore {pattern.pattern!r} is of no key of {checkpoint.path}, which has {listed(keys)}"
            raise InputError(text, argument="ignore")
    left = [key for key in keys if not any(pattern.fullmatch(key) for pattern in dropped)]
    if len(left) == len(keys):
        return checkpoint
    gone = [key for key in keys if key not in set(left)]
    return checkpoint.renamed({key: key for key in left}, f"left out as asked: {listed(gone)}")


def _without_prefix(checkpoint: Source) -> Source:
    """Without what wrappers have put before every key, such as "module.", where a model is known then."""
    keys = list(checkpoint.shapes)
    known = [rules for _, rules in table.tables().values()]
    prefix = ""
    while keys and not any(rules.recognises(key.removeprefix(prefix) for key in keys) for rules in known):
        first, dot, rest = keys[0].removeprefix(prefix).partition(".")
        longer = prefix + first + dot
        if not rest or not all(key.startswith(longer) for key in keys):
            return checkpoint
        prefix = longer
    if not prefix:
        return checkpoint
    names = {key.removeprefix(prefix): key for key in keys}
    return checkpoint.renamed(names, f"the prefix {prefix} of all keys is taken off")


def _recognise(checkpoint: Source, asked: str | None) -> str:
    """A name of the registry, by the keys. Raises WeightsError where they are of no model, or of another than
    asked.
    """
    path, keys = checkpoint.path, list(checkpoint.shapes)
    known = table.tables()
    found = [name for name, (_, rules) in known.items() if rules.recognises(keys)]
    if any("/" in key for key in keys):
        raise WeightsError(f"{path} is a native weight file already, not an official checkpoint")
    if asked and found and asked not in found:
        names = " and ".join(found)
        text = f"{path} is a checkpoint of {names}, not of {asked}: leave model out or give {found[0]}"
        raise WeightsError(text, argument="model")
    if asked or found:
        return asked or found[0]
    shown = f"{', '.join(keys[:3])}, ..." if keys else "nothing"
    models = " or ".join(cls.__name__ for cls, _ in known.values())
    patterns = " and no ".join(rules.key for _, rules in known.values())
    raise WeightsError(f"{path} is not a {models} checkpoint: it holds {shown}, no {patterns}")


def _build(cls: type[Model], rules: Table, checkpoint: Source, config: Path | None) -> Model:
    """The model of the given sizes, with those of its heads that the checkpoint has keys of."""
    network = cls()
    if config is not None:
        data = read_json(config, "config")
        try:
            if not isinstance(data, dict) or not isinstance(data.get("config", data), dict):
                raise InputError("it is no object")
            network = cls.from_config(fields_of(data.get("config", data), cls, rules.official))
        except InputError as error:
            text = f"{config} is not the configuration of a {cls.__name__} as JSON: {error}"
            raise InputError(text, argument="config") from error
    return network.clone(heads=rules.heads_in(cls, network.heads, checkpoint.shapes))


def _abstract(network: Model, config: Path | None) -> dict[str, jax.ShapeDtypeStruct]:
    try:
        return abstract_tensors(network)
    except InputError as error:
        raise InputError(f"{config} {error}", argument="config") from error


def _choose_variant(
    network: Model, rules: Table, variant: str, origin: str, config: Path | None
) -> tuple[Model, str | None]:
    """The model with the variant's fields; and which it is and why, for the report, where there is something
    to tell.
    """
    if variant != "auto" and variant not in rules.variants:
        known = ", ".join(("auto", *rules.variants))
        text = f"variant {variant} is not of {type(network).__name__}, which has {known}"
        raise InputError(text, argument="variant")
    if not rules.variants:
        return network, None
    assumed = next(name for name, one in rules.variants.items() if one.word is None)
    named = next(
        (name for name, one in rules.variants.items() if one.word and one.word in origin.lower()), None
    )
    says = [n for n, one in rules.variants.items() if n != assumed and _has(network, one.fields)]
    if variant != "auto":
        name, reason = variant, "as asked"
    elif says:
        name, reason = says[0], f"{config} says so"
    elif named:
        word = rules.variants[named].word
        name, reason = named, f"assumed: the keys do not tell, and the name {origin} has {word} in it"
    else:
        words = " or ".join(one.word for one in rules.variants.values() if one.word)
        name, reason = assumed, f"assumed: the keys do not tell, and the name {origin} has no {words} in it"
    chosen = rules.variants[name]
    report = f"{name}, {chosen.effect} ({reason})" if chosen.head in network.heads else None
    return network.clone(**chosen.fields), report


def _has(network: Model, fields: object) -> bool:
    return all(getattr(network, name) == value for name, value in dict(fields).items())  # type: ignore[call-overload]


def _count(shapes: Iterable[Sequence[int]]) -> str:
    shapes = list(shapes)
    return f"{len(shapes)} tensors, {sum(map(math.prod, shapes)):,} numbers"
