"""The strict engine of conversion: official keys in, named targets of one model out, nothing guessed.

Every source key must match exactly one rule or one excuse, and every target must be produced exactly once and
in the right shape. The engine works on shapes alone, so a whole conversion is checked before the first byte
is read.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from fastvggt_jax.errors import WeightsError
from fastvggt_jax.io.tensors import differences

LAYER = "layer"  # the group of a rule's pattern that holds the index within a scanned stack
LAYER_NUMBER = r"0|[1-9][0-9]{0,3}"  # one way to write each

# From PyTorch's axes to ours: axis i of the result is axis TRANSFORMS[name][i] of the source.
TRANSFORMS: dict[str, tuple[int, ...] | None] = {
    "keep": None,
    "linear": (1, 0),  # [out, in] -> [in, out]
    "conv": (2, 3, 1, 0),  # [out, in, kh, kw] -> [kh, kw, in, out]
    "conv_transpose": (2, 3, 0, 1),  # [in, out, kh, kw] -> [kh, kw, in, out]
}


@dataclass(frozen=True)
class Rule:
    """One line of a conversion table.

    Attributes:
      pattern: regular expression for the whole official key. A group named `layer` is the key's index in a
        stack whose members become one target, joined on a new first axis in the order of that index.
      target: the native name; `{group}` stands for the text of a group of the pattern, its '.' turned into
        '/'.
      transform: a name of TRANSFORMS.
      every: the members of the stack are this many indices apart: 2 for a stack of the even or of the odd
        ones.
    """

    pattern: str
    target: str
    transform: str = "keep"
    every: int = 1

    def __post_init__(self) -> None:
        if self.transform not in TRANSFORMS:
            raise ValueError(f"{self.transform=} must be one of {', '.join(TRANSFORMS)}")

    def apply(self, key: str) -> tuple[str, re.Match] | None:
        """The native name for `key` and the match, or None if the rule does not speak of it."""
        match = re.fullmatch(self.pattern, key)
        if match is None or not re.fullmatch(LAYER_NUMBER, match.groupdict().get(LAYER, "0")):
            return None
        groups = {name: (text or "").replace(".", "/") for name, text in match.groupdict().items()}
        return self.target.format(**groups), match


def norm(path: str, target: str) -> tuple[Rule, Rule]:
    """Rules for a LayerNorm or GroupNorm: `weight` is a scale."""
    return Rule(path + r"\.weight", target + "/scale"), Rule(path + r"\.bias", target + "/bias")


def linear(path: str, target: str) -> tuple[Rule, Rule]:
    """Rules for a Linear, with or without bias."""
    return _kernel(path, target, "linear")


def conv(path: str, target: str) -> tuple[Rule, Rule]:
    """Rules for a Conv2d, with or without bias."""
    return _kernel(path, target, "conv")


def conv_transpose(path: str, target: str) -> tuple[Rule, Rule]:
    """Rules for a ConvTranspose2d, with or without bias."""
    return _kernel(path, target, "conv_transpose")


def _kernel(path: str, target: str, transform: str) -> tuple[Rule, Rule]:
    return Rule(path + r"\.weight", target + "/kernel", transform), Rule(path + r"\.bias", target + "/bias")


@dataclass(frozen=True)
class Target:
    """One native tensor: its shape, and the official keys it is made of (several if it is a stack)."""

    name: str
    shape: tuple[int, ...]
    keys: tuple[str, ...]
    transform: str

    def chunks(self, read: Callable[[str], np.ndarray], dtype: np.dtype) -> Iterator[np.ndarray]:
        """The tensor's data, a key at a time: a stack is never held whole. Rounds to nearest even."""
        axes = TRANSFORMS[self.transform]
        for key in self.keys:
            tensor = read(key)
            if not jnp.issubdtype(tensor.dtype, jnp.floating):
                raise WeightsError(f"{key} holds {tensor.dtype} numbers; weights must be floating point")
            finite = np.isfinite(tensor).all()
            with np.errstate(over="ignore"):
                tensor = tensor.astype(dtype, copy=False)
            if not (finite and np.isfinite(tensor).all()):
                what = f"numbers beyond the range of {np.dtype(dtype).name}" if finite else "NaN or infinity"
                raise WeightsError(f"{key} holds {what}: the checkpoint is damaged or of a failed training")
            yield tensor if axes is None else tensor.transpose(axes)


@dataclass(frozen=True)
class Plan:
    """A checked conversion: `targets` cover the model exactly; `ignored` are (official key, reason)."""

    targets: tuple[Target, ...]
    ignored: tuple[tuple[str, str], ...]


Members = dict[int | None, tuple[re.Match, Rule]]  # of a stack, by the layer; None of what is no stack
Routes = dict[str, Members]  # by native name


def make_plan(
    source: Mapping[str, Sequence[int]],
    wanted: Mapping[str, jax.ShapeDtypeStruct],
    rules: Sequence[Rule],
    ignore: Mapping[str, str],
) -> Plan:
    """Decides which official key goes where.

    Args:
      source: official key -> shape.
      wanted: native name -> abstract tensor, the model's whole tree.
      ignore: pattern of keys that are rightly left out -> reason.

    Raises WeightsError naming all keys that are missing (by their official name where a neighbour in the
    stack tells it, else by the native one), unexpected or misshaped; ValueError if the rules contradict each
    other.
    """
    routes, ignored, unexpected = _route(source, rules, ignore)
    missing: list[str] = []
    wrong: list[tuple[str, Sequence[int], Sequence[int]]] = []
    targets: list[Target] = []
    for name, spec in wanted.items():
        members = routes.pop(name, None)
        if members is None:
            missing.append(name)
            continue
        stacked = None not in members
        order: Sequence[int | None] = range(spec.shape[0]) if stacked and spec.shape else [None]
        missing += [_neighbour(members, index) for index in order if index not in members]
        unexpected += [match.string for index, (match, _) in members.items() if index not in order]
        keys = []
        for index in order:
            if index in members:
                match, rule = members[index]
                shape = _official_shape(spec.shape[1:] if stacked else spec.shape, rule)
                keys.append(match.string)
                if tuple(source[match.string]) != shape:
                    wrong.append((match.string, source[match.string], shape))
        transforms = {rule.transform for _, rule in members.values()}
        if len(transforms) > 1:
            raise ValueError(
                f"the rules for {name} disagree on its transform: {', '.join(sorted(transforms))}"
            )
        targets.append(Target(name, spec.shape, tuple(keys), transforms.pop()))
    unexpected += [match.string for members in routes.values() for match, _ in members.values()]
    text = differences(missing, unexpected, wrong)
    if text:
        raise WeightsError(text)
    return Plan(tuple(targets), tuple(ignored))


def _route(
    source: Iterable[str], rules: Sequence[Rule], ignore: Mapping[str, str]
) -> tuple[Routes, list[tuple[str, str]], list[str]]:
    """Sorts the keys: native name -> {layer index or None: (match, rule)}, the excused, and those no rule
    knows.
    """
    routes: Routes = {}
    ignored: list[tuple[str, str]] = []
    unexpected: list[str] = []
    for key in source:
        hits = [(rule, *hit) for rule in rules if (hit := rule.apply(key))]
        excuses = [(pattern, reason) for pattern, reason in ignore.items() if re.fullmatch(pattern, key)]
        if len(hits) + len(excuses) > 1:
            patterns = [rule.pattern for rule, *_ in hits] + [pattern for pattern, _ in excuses]
            raise ValueError(f"{key} matches more than one rule: {' and '.join(patterns)}")
        if hits:
            rule, name, match = hits[0]
            index = int(match[LAYER]) // rule.every if LAYER in match.groupdict() else None
            members = routes.setdefault(name, {})
            if index in members or (members and (index is None or None in members)):
                other = members[index][0] if index in members else next(iter(members.values()))[0]
                raise ValueError(f"{other.string} and {key} would both become {name}")
            members[index] = match, rule
        elif excuses:
            ignored.append((key, excuses[0][1]))
        else:
            unexpected.append(key)
    return routes, ignored, unexpected


def _neighbour(members: Members, index: int | None) -> str:
    """The official name of layer `index` of a stack, spelled after a member that is there."""
    match, rule = next(iter(members.values()))
    start, end = match.span(LAYER)
    layer = (index or 0) * rule.every + int(match[LAYER]) % rule.every
    return f"{match.string[:start]}{layer}{match.string[end:]}"


def _official_shape(shape: tuple[int, ...], rule: Rule) -> tuple[int, ...]:
    """The shape in PyTorch's layout that the rule's transform turns into `shape`."""
    axes = TRANSFORMS[rule.transform]
    if axes is None:
        return tuple(shape)
    if len(axes) != len(shape):
        raise ValueError(
            f"the rule {rule.pattern} makes {len(axes)} axes, but its target has the shape {list(shape)}"
        )
    return tuple(shape[axes.index(axis)] for axis in range(len(axes)))
