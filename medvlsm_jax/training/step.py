"""The train state and the training step that jit compiles."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from medvlsm_jax.losses import Loss
from medvlsm_jax.models.apply import Batch, Values, forward
from medvlsm_jax.models.parameters import Arrays, merge_model, split_model
from medvlsm_jax.parallel.compiler import compiler_options
from medvlsm_jax.parallel.sharding import batch_sharding, gather_whole, replicated, tree_shardings, with_mesh


class TrainState(NamedTuple):
    """All that a step reads and writes on device."""

    step: jax.Array  # () int32, steps taken
    trained: Arrays  # parameters that are updated
    frozen: Arrays  # parameters that are not
    stats: Arrays  # running statistics
    opt_state: Any
    ema: Arrays  # moving averages of `trained`; empty without them

    def arrays(self) -> Arrays:
        """All of the model that is evaluated: averages stand for the parameters that have one."""
        return {**self.trained, **self.frozen, **self.stats, **self.ema}


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """`(state, batch, learning_rate) -> (state, values)`, jitted; the old state must not be used again.

    Its frozen parameters may: they are neither donated nor handed through.
    """

    step: Any  # what jit made of (state, frozen, batch, learning_rate), or compiled
    mesh: Mesh

    def __call__(self, state: TrainState, batch: Batch, learning_rate: Any) -> tuple[TrainState, Values]:
        rate = scalar_on(self.mesh, float(learning_rate))
        new, values = self.step(state._replace(frozen={}), state.frozen, batch, rate)
        return new._replace(frozen=state.frozen), values

    def lower(self, state: TrainState, batch: Batch) -> Any:
        """The step as jax lowers it for arrays, or shapes, like these."""
        rate = jax.ShapeDtypeStruct((), jnp.float32)
        return self.step.lower(state._replace(frozen={}), state.frozen, batch, rate)

    def compile(self, state: TrainState, batch: Batch) -> "TrainStep":
        """The step compiled for arrays, or shapes, like these; it takes no others."""
        return TrainStep(self.lower(state, batch).compile(), self.mesh)


@functools.lru_cache(maxsize=4)
def scalar_on(mesh: Mesh, value: float) -> jax.Array:
    """A float32 number on all devices, sent there once as long as it stays the same."""
    with jax.transfer_guard("allow"):  # it is meant
        return jax.make_array_from_callback((), replicated(mesh), lambda _: np.float32(value))


def new_state(
    trained: Arrays,
    frozen: Arrays,
    stats: Arrays,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    opt_state: Any = None,
    step: int = 0,
    ema: Arrays | None = None,
) -> TrainState:
    """A state at `step`; without an `opt_state` the optimizer starts afresh, its state sharded like the parameters."""
    if opt_state is None:
        shardings = tree_shardings(jax.eval_shape(optimizer.init, trained), mesh)
        opt_state = jax.jit(optimizer.init, out_shardings=shardings)(trained)
    # On the mesh like everything else: an array elsewhere would make the second step compile again.
    count = jax.make_array_from_callback((), replicated(mesh), lambda _: np.int32(step))
    return TrainState(count, trained, frozen, stats, opt_state, ema or {})


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    mesh: Mesh,
    state: TrainState,
    *,
    accumulation: int = 1,
    seed: int = 0,
    ema: float = 0.0,
) -> TrainStep:
    """The training step; its values are the loss, the norms of gradient and trained parameters, and `is_finite` of all.

    Args:
        graphdef: the model's graph, in training mode.
        optimizer: updates up to the learning rate.
        loss: one value an image.
        mesh: the devices.
        state: a state, or its shapes.
        accumulation: parts that a batch is cut into and worked through one after another, to save memory; BatchNorm
            sees one part at a time.
        seed: of dropout, whose masks are a function of it, the step and the part.
        ema: decay of the state's moving averages.
    """

    def loss_of(
        trained: Arrays, frozen: Arrays, stats: Arrays, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, Arrays]]:
        """The weighted sum over images; the sum of the weights, and the new statistics."""
        model = merge_model(graphdef, {**gather_whole(trained, mesh), **gather_whole(frozen, mesh), **stats})
        target = batch["mask"].astype(jnp.float32)
        logits = forward(model, batch, nnx.Rngs(key))
        weights = loss.weights(target)
        return (loss(logits, target) * weights).sum(), (weights.sum(), split_model(model)[2])

    def gradients(state: TrainState, frozen: Arrays, batch: Batch) -> tuple[jax.Array, Arrays, Arrays]:
        """The mean loss over the images that count, its gradient, and the new statistics."""
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def add_part(total: Any, numbered: tuple[jax.Array, Batch]) -> tuple[Any, None]:
            sums, stats = total
            number, part = numbered
            (value, (weight, stats)), grads = jax.value_and_grad(loss_of, has_aux=True)(
                state.trained, frozen, stats, part, jax.random.fold_in(key, number)
            )
            return (jax.tree.map(jnp.add, sums, (value, weight, grads)), stats), None

        zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), jnp.zeros(()), state.trained))
        if accumulation == 1:
            total, _ = add_part((zeros, state.stats), (jnp.int32(0), batch))
        else:
            parts = (jnp.arange(accumulation), cut(batch, accumulation))
            total, _ = jax.lax.scan(add_part, (zeros, state.stats), parts)
        (value, weight, grads), stats = total
        value, grads = jax.tree.map(lambda x: x / jnp.maximum(weight, 1), (value, grads))
        return value, grads, stats

    def train_step(
        state: TrainState, frozen: Arrays, batch: Batch, learning_rate: jax.Array
    ) -> tuple[TrainState, Values]:
        value, grads, stats = gradients(state, frozen, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trained)
        trained = jax.tree.map(lambda p, u: p - learning_rate * u, state.trained, updates)
        averages = move_averages(state.ema, trained, ema, state.step)
        new = TrainState(state.step + 1, trained, {}, stats, opt_state, averages)
        values = {"loss": value, "grad_norm": optax.tree.norm(grads), "param_norm": optax.tree.norm(trained)}
        is_finite = jnp.isfinite(jnp.stack([*values.values()])).all()
        return new, values | {"is_finite": is_finite}

    shardings = tree_shardings(state._replace(frozen={}), mesh)
    return TrainStep(
        jax.jit(
            with_mesh(mesh, train_step),
            in_shardings=(shardings, tree_shardings(state.frozen, mesh), batch_sharding(mesh), replicated(mesh)),
            out_shardings=(shardings, replicated(mesh)),
            donate_argnums=0,
            compiler_options=compiler_options(mesh.devices),
        ),
        mesh,
    )


def move_averages(averages: Arrays, trained: Arrays, decay: float, step: jax.Array) -> Arrays:
    """Moves averages towards the parameters; the first steps by more, as TensorFlow's ExponentialMovingAverage does."""
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    return {name: kept * average + (1 - kept) * trained[name] for name, average in averages.items()}


def cut(batch: Batch, parts: int) -> Batch:
    """(B, ...) to (parts, B / parts, ...); every device keeps its own rows."""
    return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def make_optimizer(config: Any) -> optax.GradientTransformation:
    """The optimizer of a run: its fields `weight_decay` and `max_grad_norm`."""
    return adamw(weight_decay=config.weight_decay, max_grad_norm=config.max_grad_norm)


def adamw(*, weight_decay: float, max_grad_norm: float) -> optax.GradientTransformation:
    """PyTorch's AdamW after clipping by the global norm (0: without), up to the learning rate.

    The learning rate multiplies the result in the train step: the plateau rule changes it between steps.
    """
    clip = optax.clip_by_global_norm(max_grad_norm) if max_grad_norm else optax.identity()
    return optax.chain(clip, optax.scale_by_adam(), optax.add_decayed_weights(weight_decay))
