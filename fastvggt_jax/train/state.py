"""The state of a training run, how it starts, how it lies on several devices, and one step of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fastvggt_jax.errors import WeightsError
from fastvggt_jax.models.base import Model
from fastvggt_jax.pretrained import from_pretrained, read_model
from fastvggt_jax.train.config import TrainConfig
from fastvggt_jax.train.data import Batch
from fastvggt_jax.train.optimizer import make_optimizer, trainable

Array = jax.Array
AXIS = "data"  # of the mesh: scenes, and with `shard_params` also parameters, are spread along it
SMALLEST_SHARDED = 1 << 14  # parameters of fewer numbers lie whole on every device


@flax.struct.dataclass
class TrainState:
    step: Array  # i32[], steps done
    params: Any
    ema: Any  # like params, or None
    opt_state: Any

    def weights(self) -> Any:
        """Those to use: the averaged ones if there are any."""
        return self.params if self.ema is None else self.ema


def initial_params(model: Model, seed: int, layer_scale: float) -> Any:
    """A random start: the model's own, but for the layer scales."""
    inputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), model.smallest_inputs())
    params = jax.jit(model.init)(jax.random.key(seed), *inputs)["params"]
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    flat = {name: jnp.full_like(x, layer_scale) if name.endswith("/gamma") else x for name, x in flat.items()}
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def read_params(config: TrainConfig) -> Any:
    """float32 parameters of the weight file `config.init`. Raises WeightsError unless it holds this very
    model.
    """
    init = config.init or ""
    found, wanted = type(read_model(init)).__name__, type(config.model).__name__
    if found != wanted:
        raise WeightsError(f"init: {config.init} holds a {found}, not a {wanted}")
    model, params = from_pretrained(init, param_dtype=jnp.float32, heads=config.model.heads)
    mine, theirs = config.model.config(), model.config()
    other = [f"{name}={theirs[name]} (here {mine[name]})" for name in mine if mine[name] != theirs[name]]
    if other:
        raise WeightsError(f"init: {config.init} holds another model: {', '.join(other)}")
    return params["params"]


def first_params(config: TrainConfig) -> Any:
    """What the run starts from: the file `init`, or random numbers."""
    return (
        read_params(config) if config.init else initial_params(config.model, config.seed, config.layer_scale)
    )


def start(config: TrainConfig, params: Any) -> TrainState:
    copy = lambda tree: jax.tree.map(jnp.copy, tree)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=None if config.ema_decay is None else copy(params),
        opt_state=make_optimizer(config, params).init(params),
    )


def abstract_state(config: TrainConfig) -> TrainState:
    """Shapes and dtypes of the state; nothing is computed."""
    params = config.model.abstract_params()["params"]
    return jax.eval_shape(lambda params: start(config, params), params)


def make_mesh() -> Mesh:
    """All devices in a row."""
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def state_sharding(config: TrainConfig, mesh: Mesh) -> TrainState:
    """A tree like the state of how each array lies on the devices: whole on each, or spread along its longest
    axis that divides.
    """

    def of(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        axes = [axis for axis, n in enumerate(leaf.shape) if n % mesh.size == 0]
        if not config.shard_params or leaf.size < SMALLEST_SHARDED or not axes:
            return NamedSharding(mesh, PartitionSpec())
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(
            mesh, PartitionSpec(*[AXIS if axis == longest else None for axis in range(len(leaf.shape))])
        )

    return jax.tree.map(of, abstract_state(config))


def make_step(
    config: TrainConfig, mesh: Mesh
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, dict[str, Array]]]:
    """The jitted step: (state, batch, learning rate f32[]) -> (state, metrics f32[] by name). The state that
    is given is used up.
    """
    shapes = config.model.abstract_params()["params"]
    free, optimizer = trainable(shapes, config.frozen), make_optimizer(config, shapes)

    def step(state: TrainState, batch: Batch, rate: Array) -> tuple[TrainState, dict[str, Array]]:
        def objective(params: Any) -> tuple[Array, dict[str, Array]]:
            params = jax.tree.map(lambda p, trained: p if trained else jax.lax.stop_gradient(p), params, free)
            return loss_of(config, params, batch, jax.random.fold_in(jax.random.key(config.seed), state.step))

        (total, parts), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, optax.tree.scale(-rate, updates))
        ema = state.ema
        if (
            ema is not None and config.ema_decay is not None
        ):  # a short memory at first: the start is soon forgotten
            decay = jnp.minimum(config.ema_decay, (1 + state.step) / (10 + state.step))
            ema = optax.incremental_update(params, ema, 1 - decay)
        metrics = {"loss": total, **parts, "gradient norm": optax.tree.norm(gradient)}
        return TrainState(step=state.step + 1, params=params, ema=ema, opt_state=opt_state), metrics

    sharding = state_sharding(config, mesh)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(sharding, along_scenes(mesh), None),
        out_shardings=(sharding, None),
    )


def along_scenes(mesh: Mesh) -> NamedSharding:
    """How a batch lies on the devices: each has some of the scenes."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def loss_of(
    config: TrainConfig, params: Any, batch: Batch, key: Array | None = None
) -> tuple[Array, dict[str, Array]]:
    """The loss that the model was published with, and its parts by name.

    key: of what the model draws by chance; None, as in validation: the same each time.
    """
    key = jax.random.key(0) if key is None else key
    inputs = config.model.training_inputs(batch.truth, batch.query_points, key)
    prediction = config.model.apply({"params": params}, batch.images, *inputs)
    return config.model.loss(prediction, batch.truth, **config.loss_weights)
