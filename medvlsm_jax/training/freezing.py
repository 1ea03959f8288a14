"""What of a network is trained, and what stays as it is."""

import ml_collections
from flax import nnx

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


def freezing(config: ml_collections.ConfigDict) -> dict[str, bool]:
    """What is frozen: the encoder where `config.init` brings pretrained weights, unless the config says otherwise."""
    frozen_encoder = config.freeze_encoder if config.freeze_encoder is not None else bool(config.init)
    return {"freeze_encoder": frozen_encoder, "freeze_decoder": config.freeze_decoder}
