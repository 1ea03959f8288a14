"""The train state and the functions that jit compiles: one training step, one evaluation step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from medvlsm_jax.evaluation.metrics import dice_and_iou
from medvlsm_jax.models.layers import normalize_pixels
from medvlsm_jax.models.network import Network
from medvlsm_jax.models.parameters import Arrays, merge_model, split_model
from medvlsm_jax.training.losses import Loss
from medvlsm_jax.training.sharding import batch_sharding, replicated, tree_shardings


class TrainState(NamedTuple):
    """All that a step reads and writes on device."""

    step: jax.Array  # () int32, steps taken
    trained: Arrays  # parameters that are updated
    frozen: Arrays  # parameters that are not
    stats: Arrays  # running statistics
    opt_state: Any

    def arrays(self) -> Arrays:
        """All of the model: what an evaluation and a checkpoint need."""
        return {**self.trained, **self.frozen, **self.stats}


Step = Callable[[TrainState, dict[str, jax.Array], jax.Array], tuple[TrainState, dict[str, jax.Array]]]


def new_state(
    trained: Arrays,
    frozen: Arrays,
    stats: Arrays,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    opt_state: Any = None,
    step: int = 0,
) -> TrainState:
    """A state at `step`; without an `opt_state` the optimizer starts afresh, its state sharded like the parameters."""
    if opt_state is None:
        shardings = tree_shardings(jax.eval_shape(optimizer.init, trained), mesh)
        opt_state = jax.jit(optimizer.init, out_shardings=shardings)(trained)
    # On the mesh like everything else: an array elsewhere would make the second step compile again.
    return TrainState(jax.device_put(np.int32(step), replicated(mesh)), trained, frozen, stats, opt_state)


def forward(
    model: Network, batch: dict[str, jax.Array], rngs: nnx.Rngs | None = None
) -> Float[Array, "b height width 1"]:
    """Logits for a batch of uint8 images and tokens; of several classes, those of the one that each record asks for."""
    config = model.config
    pixel_values = normalize_pixels(batch["image"], config.pixel_mean, config.pixel_std)
    logits = model(pixel_values, batch.get("input_ids"), batch.get("attention_mask"), rngs=rngs)
    if "class_index" not in batch:
        return logits
    return jnp.take_along_axis(logits, batch["class_index"][:, None, None, None], axis=-1)


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    mesh: Mesh,
    state: TrainState,
    *,
    accumulation: int = 1,
    seed: int = 0,
) -> Step:
    """Compiles `(state, batch, learning_rate) -> (state, metrics)`; the state's buffers are donated.

    Args:
        graphdef: the model's graph, in training mode.
        optimizer: updates up to the learning rate.
        loss: one value an image.
        mesh: the devices.
        state: a state, or its shapes.
        accumulation: parts that a batch is cut into and worked through one after another, to save memory; BatchNorm
            sees one part at a time.
        seed: of dropout, whose masks are a function of it, the step and the part.
    """

    def loss_of(
        trained: Arrays, frozen: Arrays, stats: Arrays, batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, Arrays]]:
        """The weighted sum over images; the sum of the weights, and the new statistics."""
        model = merge_model(graphdef, {**trained, **frozen, **stats})
        target = batch["mask"].astype(jnp.float32)
        logits = forward(model, batch, nnx.Rngs(key))
        weights = loss.weights(target)
        return (loss(logits, target) * weights).sum(), (weights.sum(), split_model(model)[2])

    def gradients(state: TrainState, batch: dict[str, jax.Array]) -> tuple[jax.Array, Arrays, Arrays]:
        """The mean loss over the images that count, its gradient, and the new statistics."""
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def add_part(total: Any, numbered: tuple[jax.Array, dict[str, jax.Array]]) -> tuple[Any, None]:
            sums, stats = total
            number, part = numbered
            (value, (weight, stats)), grads = jax.value_and_grad(loss_of, has_aux=True)(
                state.trained, state.frozen, stats, part, jax.random.fold_in(key, number)
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
        state: TrainState, batch: dict[str, jax.Array], learning_rate: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        value, grads, stats = gradients(state, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trained)
        trained = jax.tree.map(lambda p, u: p - learning_rate * u, state.trained, updates)
        new = state._replace(step=state.step + 1, trained=trained, stats=stats, opt_state=opt_state)
        return new, {"loss": value, "grad_norm": optax.tree.norm(grads)}

    shardings = tree_shardings(state, mesh)
    return jax.jit(
        train_step,
        in_shardings=(shardings, batch_sharding(mesh), replicated(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def cut(batch: dict[str, jax.Array], parts: int) -> dict[str, jax.Array]:
    """(B, ...) to (parts, B / parts, ...); every device keeps its own rows."""
    return {name: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1) for name, x in batch.items()}


def make_eval_step(
    graphdef: nnx.GraphDef, mesh: Mesh, loss: Loss | None = None, *, probabilities: bool = False
) -> Callable[[Arrays, dict[str, jax.Array]], dict[str, jax.Array]]:
    """Compiles `(arrays, batch) -> values of each image`: index, valid, dice, iou, and if one is given loss and weight.

    They are replicated, so that every process can read all of them; the map called `probability`, on request, stays
    where its rows are.
    """

    def eval_step(arrays: Arrays, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        model = merge_model(graphdef, arrays)
        logits = forward(model, batch)
        target = batch["mask"].astype(jnp.float32)
        values = dice_and_iou(logits, target, model.config.threshold)
        values |= {name: batch[name] for name in ("index", "valid")}
        if loss is not None:
            values |= {"loss": loss(logits, target), "weight": loss.weights(target)}
        if probabilities:
            values["probability"] = jax.nn.sigmoid(logits)
        return values

    shardings: dict[str, Any] = dict.fromkeys(("index", "valid", "dice", "iou"), replicated(mesh))
    if loss is not None:
        shardings |= {"loss": replicated(mesh), "weight": replicated(mesh)}
    if probabilities:
        shardings["probability"] = batch_sharding(mesh)
    return jax.jit(eval_step, out_shardings=shardings)
