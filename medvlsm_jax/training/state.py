"""The train state and the functions that jit compiles: one training step, one evaluation step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from medvlsm_jax.evaluation.metrics import dice_and_iou
from medvlsm_jax.models import ModelConfig
from medvlsm_jax.models.layers import normalize_pixels
from medvlsm_jax.models.parameters import Arrays, merge_model
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


def apply(graphdef: nnx.GraphDef, config: ModelConfig, arrays: Arrays, batch: dict[str, jax.Array]) -> jax.Array:
    """Logits (B, H, W, 1) for a batch of uint8 images and tokens."""
    model = merge_model(graphdef, arrays)
    pixel_values = normalize_pixels(batch["image"], config.pixel_mean, config.pixel_std)
    return model(pixel_values, batch["input_ids"], batch["attention_mask"])


def make_train_step(
    graphdef: nnx.GraphDef,
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    mesh: Mesh,
    state: TrainState,
    *,
    accumulation: int = 1,
) -> Step:
    """Compiles `(state, batch, learning_rate) -> (state, metrics)`; the state's buffers are donated.

    Args:
        graphdef: the model's graph.
        config: its config.
        optimizer: updates up to the learning rate.
        loss: one value an image.
        mesh: the devices.
        state: a state, or its shapes.
        accumulation: parts that a batch is cut into and worked through one after another, to save memory.
    """

    def loss_of(trained: Arrays, frozen: Arrays, stats: Arrays, batch: dict[str, jax.Array]) -> jax.Array:
        logits = apply(graphdef, config, {**trained, **frozen, **stats}, batch)
        return loss(logits, batch["mask"].astype(jnp.float32)).mean()

    def gradients(state: TrainState, batch: dict[str, jax.Array]) -> tuple[jax.Array, Arrays]:
        def one_part(part: dict[str, jax.Array]) -> tuple[jax.Array, Arrays]:
            return jax.value_and_grad(loss_of)(state.trained, state.frozen, state.stats, part)

        if accumulation == 1:
            return one_part(batch)
        zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), state.trained))
        add = lambda total, part: (jax.tree.map(jnp.add, total, one_part(part)), None)  # noqa: E731
        total, _ = jax.lax.scan(add, zeros, cut(batch, accumulation))
        return jax.tree.map(lambda x: x / accumulation, total)

    def train_step(
        state: TrainState, batch: dict[str, jax.Array], learning_rate: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        value, grads = gradients(state, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trained)
        trained = jax.tree.map(lambda p, u: p - learning_rate * u, state.trained, updates)
        new = state._replace(step=state.step + 1, trained=trained, opt_state=opt_state)
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
    graphdef: nnx.GraphDef, config: ModelConfig, mesh: Mesh, loss: Loss | None = None, *, probabilities: bool = False
) -> Callable[[Arrays, dict[str, jax.Array]], dict[str, jax.Array]]:
    """Compiles `(arrays, batch) -> values of each image`: index, valid, dice, iou, and the loss if one is given.

    They are replicated, so that every process can read all of them; the map called `probability`, on request, stays
    where its rows are.
    """

    def eval_step(arrays: Arrays, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        logits = apply(graphdef, config, arrays, batch)
        target = batch["mask"].astype(jnp.float32)
        values = dice_and_iou(logits, target, config.threshold)
        values |= {name: batch[name] for name in ("index", "valid")}
        if loss is not None:
            values["loss"] = loss(logits, target)
        if probabilities:
            values["probability"] = jax.nn.sigmoid(logits)
        return values

    shardings: dict[str, Any] = dict.fromkeys(("index", "valid", "dice", "iou"), replicated(mesh))
    if loss is not None:
        shardings["loss"] = replicated(mesh)
    if probabilities:
        shardings["probability"] = batch_sharding(mesh)
    return jax.jit(eval_step, out_shardings=shardings)
