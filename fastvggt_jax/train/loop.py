"""The training loop: render, step, record, validate, save; it goes on where an earlier call in the same
folder has stopped.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from fastvggt_jax.errors import InputError, is_full
from fastvggt_jax.train.checkpoints import BEST, MARK, WEIGHTS, Checkpoints, TrainingFailed, check_folder
from fastvggt_jax.train.config import Shape, TrainConfig
from fastvggt_jax.train.data import Batch, render
from fastvggt_jax.train.metrics import Metrics, means
from fastvggt_jax.train.optimizer import learning_rates
from fastvggt_jax.train.state import (
    TrainState,
    abstract_state,
    along_scenes,
    first_params,
    loss_of,
    make_mesh,
    make_step,
    start,
    state_sharding,
)
from pallas_kernels import compiles_in_threads


def train(
    config: TrainConfig, workdir: str | Path, *, minutes: float | None = None, quiet: bool = False
) -> TrainState:
    """Trains until `config.steps`, an interrupt, or `minutes` have gone, saves, and writes the (averaged)
    weights to weights.safetensors.

    In a folder of an earlier call it goes on from the last checkpoint, with the same batches and the same
    state; on a CPU its numbers are those of a run that was never stopped, bit by bit. Compiling counts as
    time, the last saving does not. Nothing is saved of no steps.

    Raises:
      TrainingFailed: the loss or its gradient is not finite, or there is no space for a file; the last good
        checkpoint stays.
      WeightsError: the folder or `init` is that of another model.
      TargetError: another training is running in the folder, or it can be none.
      InputError: a shape does not fit the number of devices, or `minutes` is no time.
    """
    if minutes is not None and not minutes > 0:
        raise InputError(f"minutes must be greater than 0, not {minutes:g}", argument="minutes")
    folder, deadline = Path(workdir), time.monotonic() + 60 * (math.inf if minutes is None else minutes)
    check_folder(folder)
    if jax.process_count() > 1:
        raise InputError(f"training runs in one process, on all of its devices, not in {jax.process_count()}")
    mesh = make_mesh()
    for shape in config.shapes:
        if shape.scenes % mesh.size:
            text = f"{shape}: its scenes must be a multiple of the {mesh.size} devices"
            raise InputError(text, argument="shapes")
    # This and `first` say what is wrong with `frozen` and `init` before the folder is made.
    sharding = state_sharding(config, mesh)
    first = lambda: jax.device_put(first_params(config), sharding.params)
    params = None if os.path.exists(folder / MARK) else first()
    with Checkpoints(folder, config) as checkpoints, _interrupts() as interrupted:
        if checkpoints.last_step is not None:
            state = checkpoints.restore(abstract_state(config), sharding)
        else:
            # Compiled, so that averages and moments are made where they lie; the parameters are used up.
            begin = jax.jit(partial(start, config), donate_argnums=0, out_shardings=sharding)
            state = begin(params or first())
        done = int(state.step)
        metrics = Metrics(folder, done, quiet)
        try:
            metrics.say(
                f"step {done} of {config.steps}, {mesh.size} × {jax.devices()[0].device_kind}, in {folder}"
            )
            if checkpoints.last_step is not None and config.init is not None:
                metrics.say(f"init is not read again: {folder} has a run of {done} steps, which goes on")
            state = _steps(
                config,
                mesh,
                state,
                done,
                checkpoints,
                metrics,
                lambda: bool(interrupted) or time.monotonic() > deadline,
            )
            if not int(state.step):
                metrics.say("stopped before the first step; nothing was saved")
                return state
            if checkpoints.last_step != int(state.step):
                checkpoints.save(state)
            checkpoints.wait()
            checkpoints.write_weights(WEIGHTS, state)
            metrics.say(
                f"stopped after {int(state.step)} of {config.steps} steps; weights in {folder / WEIGHTS}"
            )
        except OSError as error:
            if not is_full(error):
                raise
            raise checkpoints.failure(error) from error
        finally:
            metrics.close()
    return state


def _steps(
    config: TrainConfig,
    mesh: Mesh,
    state: TrainState,
    done: int,
    checkpoints: Checkpoints,
    metrics: Metrics,
    stop: Callable[[], bool],
) -> TrainState:
    if done >= config.steps:
        return state
    metrics.say("compiling, which the compilation cache saves the next run")
    step, evaluate = compiled(config, mesh)
    metrics.start_clock()
    rates = learning_rates(config)
    while done < config.steps and not stop():
        shape = config.shape_of(done)
        state, values = step(state, batch_of(config, done, shape, along_scenes(mesh)), rates[done])
        done += 1
        metrics.add(values, shape.scenes)
        due = [
            done % every == 0 or done == config.steps
            for every in (config.log_every, config.validate_every, config.save_every)
        ]
        _, to_validate, to_save = due
        if any(due):  # nothing is saved before all losses up to here were found finite
            _check(metrics.record(done), config, checkpoints)
        if to_validate and config.validation_scenes:
            values = validate(config, mesh, evaluate, state)
            _check(None if math.isfinite(values["loss"]) else done, config, checkpoints)
            if metrics.validated(done, values):
                checkpoints.write_weights(BEST, state)
        if to_save:
            checkpoints.save(state)
    _check(metrics.record(done), config, checkpoints)
    return state


def _check(bad_step: int | None, config: TrainConfig, checkpoints: Checkpoints) -> None:
    if bad_step is not None:
        hint = f"try a lower learning_rate than {config.learning_rate:g}"
        raise TrainingFailed(
            f"the loss or gradient of step {bad_step} is not finite; {checkpoints.last_good}; {hint}"
        )


def batch_of(config: TrainConfig, step: int, shape: Shape, sharding: NamedSharding) -> Batch:
    """The batch of a step; below 0 those of validation, -1 - the number of its first scene."""
    if config.data is not None:
        batch = config.data(step, shape)
    else:
        split, first = ("validation", -1 - step) if step < 0 else ("train", config.first_scene_of(step))
        batch = render(
            split,
            first,
            shape,
            query_points=config.query_points,
            supersampling=config.supersampling,
            sharding=sharding,
        )
    return jax.device_put(batch, sharding)  # a rendered one may be there already


def compiled(
    config: TrainConfig, mesh: Mesh
) -> tuple[Callable[[TrainState, Batch, Any], Any], Callable[[Any, Batch], Any]]:
    """What `make_step` and `make_evaluation` give. For rendered batches everything is compiled here, all
    kinds at once in threads, where the kernels allow it: to compile one takes a minute or two on a GPU's
    host, most of it on one core.
    """
    step: Any = make_step(config, mesh)
    evaluate: Any = make_evaluation(config, mesh)
    if config.data is not None:
        return step, evaluate
    state, rate = abstract_state(config), jax.ShapeDtypeStruct((), jnp.float32)
    sharding = along_scenes(mesh)
    batch = partial(batch_of, config, sharding=sharding)
    kinds = [jax.eval_shape(partial(batch, 0, shape)) for shape in config.shapes]
    # A kernel that XLA cannot partition sees by it that it cannot serve, see `pallas_kernels`' `is_sharded`.
    kinds = jax.tree.map(lambda x: x.update(sharding=sharding), kinds)
    at_once = None if compiles_in_threads(config.model.dtype) else 1
    with ThreadPoolExecutor() as rendering, ThreadPoolExecutor(at_once) as compiling:
        rendered = [rendering.submit(batch, 0, shape) for shape in config.shapes]
        lower = lambda kind: step.lower(state, kind, rate).compile()
        jobs = {kind.images.shape: compiling.submit(lower, kind) for kind in kinds}
        validation = None
        if config.validation_scenes:
            validation = compiling.submit(lambda: evaluate.lower(state.weights(), kinds[0]).compile())
    for job in rendered:
        job.result()  # raises what went wrong
    steps = {shape: job.result() for shape, job in jobs.items()}
    take = lambda state, batch, rate: steps[batch.images.shape](state, batch, rate)
    return take, evaluate if validation is None else validation.result()


def make_evaluation(
    config: TrainConfig, mesh: Mesh
) -> Callable[[Any, Batch], tuple[jax.Array, dict[str, jax.Array]]]:
    """The jitted loss of a batch: (parameters, batch) -> (loss f32[], its parts)."""
    sharding = state_sharding(config, mesh).weights(), along_scenes(mesh)
    return jax.jit(lambda params, batch: loss_of(config, params, batch), in_shardings=sharding)


def validate(
    config: TrainConfig, mesh: Mesh, evaluate: Callable[[Any, Batch], Any], state: TrainState
) -> dict[str, float]:
    """Means of the loss and its parts over the validation scenes, of the first shape, with the weights to
    use.
    """
    shape, values = config.shapes[0], []
    for first in range(0, config.validation_scenes, shape.scenes):
        total, parts = evaluate(state.weights(), batch_of(config, -1 - first, shape, along_scenes(mesh)))
        values.append({"loss": total, **parts})
    return means(jax.device_get(values))


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """A list that fills when the process is asked to stop (Ctrl-C, SIGTERM); asked again, it ends at once."""
    seen: list[int] = []

    def handler(number: int, _: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)
        # print is not for signal handlers
        os.write(2, b"interrupted: ends after this step and saves; once more ends at once\n")

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, handler)
    except ValueError:  # not the main thread: nobody's signals are ours
        pass
    try:
        yield seen
    finally:
        for number, old in before.items():
            signal.signal(number, old)
