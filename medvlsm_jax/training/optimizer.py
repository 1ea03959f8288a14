"""What is trained, how a gradient becomes an update, and when the learning rate falls or training ends."""

import dataclasses
import math

import optax
from flax import nnx

from medvlsm_jax.errors import UserError
from medvlsm_jax.models.network import Network
from medvlsm_jax.models.parameters import Arrays, undotted


def is_frozen(model: Network, child: str, *, freeze_encoder: bool, freeze_decoder: bool) -> bool:
    """Whether a child of the model is left as it is."""
    return freeze_encoder if child in model.encoder else freeze_decoder


def set_training_mode(model: Network, *, freeze_encoder: bool, freeze_decoder: bool) -> None:
    """Training mode for what is trained. Frozen means frozen: running statistics stand still and nothing is dropped."""
    model.train()
    for name, child in nnx.iter_children(model):
        frozen = is_frozen(model, str(name), freeze_encoder=freeze_encoder, freeze_decoder=freeze_decoder)
        if frozen and isinstance(child, nnx.Module):
            child.eval()


def is_trained(model: Network, name: str, *, freeze_encoder: bool, freeze_decoder: bool) -> bool:
    """Whether a parameter is updated: neither frozen nor without influence on the logits.

    PyTorch gives an unused parameter no gradient and so no weight decay; leaving it alone here does the same.
    """
    path = undotted(name)
    frozen = is_frozen(model, str(path[0]), freeze_encoder=freeze_encoder, freeze_decoder=freeze_decoder)
    return not frozen and not model.unused(path)


def split_trained(
    model: Network, params: Arrays, *, freeze_encoder: bool, freeze_decoder: bool
) -> tuple[Arrays, Arrays]:
    """The parameters that are updated, and those that are not."""
    flags = {
        name: is_trained(model, name, freeze_encoder=freeze_encoder, freeze_decoder=freeze_decoder) for name in params
    }
    trained = {name: array for name, array in params.items() if flags[name]}
    frozen = {name: array for name, array in params.items() if not flags[name]}
    return trained, frozen


def adamw(*, weight_decay: float, max_grad_norm: float) -> optax.GradientTransformation:
    """PyTorch's AdamW after clipping by the global norm, up to the learning rate.

    The learning rate multiplies the result in the train step: the plateau rule changes it between steps.
    """
    return optax.chain(
        optax.clip_by_global_norm(max_grad_norm), optax.scale_by_adam(), optax.add_decayed_weights(weight_decay)
    )


def schedule_factor(schedule: str, step: int, total_steps: int, warmup_steps: int) -> float:
    """What the learning rate is multiplied by at a step: a linear warm-up, then constant or half a cosine down to 0.

    The plateau rule acts besides it. Raises UserError for another schedule than `constant` or `cosine`.
    """
    if schedule not in ("constant", "cosine"):
        raise UserError(f"config.schedule={schedule!r}: choose constant or cosine")
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps))


@dataclasses.dataclass
class ReduceOnPlateau:
    """Lowers the learning rate when a value stops falling: torch.optim.lr_scheduler.ReduceLROnPlateau's rule.

    A value is better if it lies below the best by a relative `threshold`; more than `patience` evaluations without a
    better one multiply the learning rate by `factor`, unless that changes it by no more than torch's eps of 1e-8.
    """

    initial: float  # the config's learning rate; `scale` is what the rule has made of it
    factor: float = 0.1
    patience: int = 5
    threshold: float = 1e-4
    scale: float = 1.0
    best: float = math.inf
    bad: int = 0

    @property
    def learning_rate(self) -> float:
        """The current one."""
        return self.initial * self.scale

    def update(self, value: float) -> None:
        """Takes one evaluation's value."""
        if value < self.best * (1 - self.threshold):
            self.best, self.bad = value, 0
        else:
            self.bad += 1
        if self.bad > self.patience:
            if self.learning_rate * (1 - self.factor) > 1e-8:
                self.scale *= self.factor
            self.bad = 0


@dataclasses.dataclass
class EarlyStopping:
    """Ends training when a score stops rising: Lightning's EarlyStopping with mode="max".

    A score is better if it exceeds the best by `min_delta`; `patience` evaluations without a better one end training,
    though not before `min_epochs`. The patience of 0 never ends it.
    """

    patience: int = 20
    min_delta: float = 1e-4
    min_epochs: int = 10
    best: float = -math.inf
    bad: int = 0

    def update(self, score: float) -> None:
        """Takes one evaluation's score."""
        if score - self.min_delta > self.best:
            self.best, self.bad = score, 0
        else:
            self.bad += 1

    def should_stop(self, epoch: int) -> bool:
        """Whether training ends after this many epochs."""
        return 0 < self.patience <= self.bad and epoch >= self.min_epochs
