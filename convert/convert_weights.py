"""Official PyTorch checkpoint -> native weight file.

    python -m convert.convert_weights IN OUT [--model vggt|pi3] [--config FILE.json] [--variant auto] [--dtype
    float32]

IN is a .safetensors file, a .pt file (needs the extra torch) or a hub repository such as facebook/VGGT-1B or
yyfz233/Pi3 (needs the extra hub). The conversion is strict: a tensor that is missing, unexpected or misshaped
ends it before anything is written. It streams: memory holds one official tensor at a time, whatever the size
of the model.
"""

import argparse
import json
import math
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from convert import hub, pi3, vggt
from convert.official import fields_of
from convert.rules import make_plan
from convert.sources import Source, open_source
from fastvggt_jax.errors import WeightsError
from fastvggt_jax.io.tensors import listed, write_safetensors
from fastvggt_jax.io.weights import abstract_tensors, native_metadata
from fastvggt_jax.models.pi3 import Pi3
from fastvggt_jax.models.vggt import HEADS, VGGT

FLOATS = ("float32", "bfloat16", "float16", "float64")
MODELS = {"vggt": (VGGT, vggt), "pi3": (Pi3, pi3)}
OFFICIAL = {VGGT: vggt, Pi3: pi3}
DEFAULT_SIZES = {"vggt": "VGGT-1B", "pi3": "the released π³"}
Network = VGGT | Pi3


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0, 2 for bad input, 1 when reading, writing or the network
    fails.
    """
    parser = argparse.ArgumentParser(
        prog="python -m convert.convert_weights", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "source", metavar="IN", help="a .safetensors or .pt file, or a hub repository (OWNER/NAME)"
    )
    parser.add_argument(
        "target", metavar="OUT", type=Path, help="the native weight file to write (.safetensors)"
    )
    parser.add_argument(
        "--model", choices=("vggt", "pi3"), help="what IN is; by default recognised from its keys"
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE.json",
        help="sizes of the model if they are not the released one's",
    )
    parser.add_argument(
        "--variant",
        choices=("auto", "1b", "tracker-fixed"),
        default="auto",
        help="tracker-fixed: the track features carry a position embedding, which no key tells; auto decides by the name of IN",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the written weights"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    options = parser.parse_args(arguments)
    try:
        convert(**vars(options))
    except (ValueError, ImportError, FileNotFoundError, FileExistsError, IsADirectoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error
        print(f"error: {text}", file=sys.stderr)
        return 1
    return 0


def convert(
    source: str,
    target: Path,
    model: str | None = None,
    config: Path | None = None,
    variant: str = "auto",
    dtype: str = "float32",
    overwrite: bool = False,
) -> None:
    """Converts the checkpoint `source` to the native file `target` and prints what was done; see the command
    line.

    Raises ValueError (WeightsError), ImportError, OSError and its kinds, each with one sentence; then
    `target` is as it was before.
    """
    _check_target(target, overwrite)
    repository = source if hub.is_repository(source) else None
    path = hub.fetch(repository) if repository else Path(source)
    checkpoint = open_source(path)
    if target.exists() and target.samefile(path):
        raise ValueError(f"{target} is the checkpoint itself: write to another file")
    model = _recognise(checkpoint, model)
    cls, table = MODELS[model]
    origin = f"{repository}/{path.name}" if repository else path.name

    network, reason = _build(cls, checkpoint, config), ""
    if cls is VGGT:
        network, reason = _choose_variant(network, variant, origin, config)
    elif variant != "auto":
        raise ValueError(f"--variant {variant} is of VGGT, {path} is a π³ checkpoint")
    wanted = _abstract(network, config)
    try:
        plan = make_plan(checkpoint.shapes, wanted, table.RULES, table.IGNORE)
    except WeightsError as error:
        sizes = (
            f"the sizes of {config}"
            if config
            else f"the sizes of {DEFAULT_SIZES[model]}, assumed for want of --config FILE.json"
        )
        raise WeightsError(f"{path} does not fit {sizes}: {error}") from error

    odd = [
        f"{key} ({checkpoint.dtypes[key]})"
        for t in plan.targets
        for key in t.keys
        if checkpoint.dtypes[key] not in FLOATS
    ]
    if odd:
        raise WeightsError(
            f"{path} holds numbers that are no weights: {listed(odd)}; they must be {', '.join(FLOATS)}"
        )

    targets = {t.name: t for t in plan.targets}
    size = write_safetensors(
        target,
        {name: jax.ShapeDtypeStruct(t.shape, jnp.dtype(dtype)) for name, t in targets.items()},
        lambda name: targets[name].chunks(checkpoint.read, jnp.dtype(dtype)),
        native_metadata(network, origin, hub.licence_of(repository)),
    )
    _report_source(checkpoint, network, config or DEFAULT_SIZES[model], reason)
    for key, why in plan.ignored:
        print(f"ignored   {key}: {why}")
    print(f"wrote     {target}: {_count(t.shape for t in plan.targets)}, {dtype}, {size / 1e9:.2f} GB")
    print(f"licence   of the weights: {hub.licence_of(repository)}")


def _report_source(checkpoint: Source, network: Network, sizes: Path | str, reason: str) -> None:
    dtypes = ", ".join(sorted(set(checkpoint.dtypes.values())))
    print(f"read      {checkpoint.path}: {_count(checkpoint.shapes.values())}, {dtypes}")
    if isinstance(network, Pi3):
        print(f"model     Pi3, sizes of {sizes}")
        return
    absent = [head for head in HEADS if head not in network.heads]
    heads = (", ".join(network.heads) or "none") + (f" (not in it: {', '.join(absent)})" if absent else "")
    print(f"model     VGGT, sizes of {sizes}; heads: {heads}")
    if "track" in network.heads:
        name, effect = ("tracker-fixed", "with") if network.track_pos_embed else ("1b", "without")
        print(f"variant   {name}, track features {effect} position embedding ({reason})")


def _check_target(target: Path, overwrite: bool) -> None:
    """Finds out before a long download or read what would fail at its end."""
    if target.suffix != ".safetensors":
        raise ValueError(f"{target} must end in .safetensors: that is what is written")
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder: give the name of the file to write")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists already: give another name or --overwrite")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} does not exist")


def _recognise(checkpoint: Source, asked: str | None) -> str:
    """A name of MODELS, by the keys. WeightsError where they are those of neither, or of another model
    than the one asked for.
    """
    path, keys = checkpoint.path, list(checkpoint.shapes)
    found = [name for name, (_, table) in MODELS.items() if any(re.fullmatch(table.KEY, key) for key in keys)]
    if any("/" in key for key in keys):
        raise WeightsError(f"{path} is a native weight file already, not an official checkpoint")
    if "pi3" in found and any(re.fullmatch(pi3.PI3X_KEY, key) for key in keys):
        raise WeightsError(
            f"{path} is a checkpoint of Pi3X, another model than π³, with other heads and inputs: convert one of yyfz233/Pi3"
        )
    if asked and found and asked not in found:
        raise WeightsError(
            f"{path} is a checkpoint of {' and '.join(found)}, not of {asked}: leave --model out or give --model {found[0]}"
        )
    if asked or found:
        return asked or found[0]
    shown = f"{', '.join(keys[:3])}, ..." if keys else "nothing"
    raise WeightsError(
        f"{path} is neither a VGGT nor a π³ checkpoint: it holds {shown}, no aggregator.* and no point_decoder.*"
    )


def _build(cls: type[Network], checkpoint: Source, config: Path | None) -> Network:
    """The model of the given sizes; VGGT with those of its heads that the checkpoint has keys of."""
    network = cls()
    if config is not None:
        try:
            data = json.loads(config.read_text())
            official = OFFICIAL[cls].OFFICIAL
            network = cls.from_config(fields_of(data.get("config", data), cls, official))
        except OSError as error:
            raise FileNotFoundError(f"{config}: cannot be read ({error.strerror})") from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{config} is not the configuration of a {cls.__name__} as JSON: {error}"
            ) from error
    if cls is not VGGT:
        return network
    present = tuple(
        h for h in network.heads if any(key.startswith(f"{h}_head.") for key in checkpoint.shapes)
    )
    return network.clone(heads=present)


def _abstract(network: Network, config: Path | None) -> dict[str, jax.ShapeDtypeStruct]:
    try:
        return abstract_tensors(network)
    except (
        TypeError,
        ValueError,
        ArithmeticError,
    ) as error:  # numbers that make no network, such as a width of 0
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{config} does not describe a working {type(network).__name__}: {reason}"
        ) from error


def _choose_variant(network: VGGT, variant: str, origin: str, config: Path | None) -> tuple[VGGT, str]:
    """Sets whether track features carry a position embedding; returns the model and the ground for the
    choice.
    """
    fixed = "tracker_fixed" in origin.lower()
    reason = f"assumed: the keys do not tell, and the name {origin} has {'' if fixed else 'no '}tracker_fixed in it"
    if variant != "auto":
        fixed, reason = variant == "tracker-fixed", "as asked"
    elif network.track_pos_embed:
        fixed, reason = True, f"{config} says so"
    return network.clone(track_pos_embed=fixed), reason


def _count(shapes) -> str:
    shapes = list(shapes)
    return f"{len(shapes)} tensors, {sum(map(math.prod, shapes)):,} numbers"


if __name__ == "__main__":
    jax.config.update(
        "jax_platforms", "cpu"
    )  # only shapes are asked of JAX: leave the GPU's memory to others
    sys.exit(main())
