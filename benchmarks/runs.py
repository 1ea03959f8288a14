"""What the benchmarks of networks time: inference and training steps, ours and PyTorch's, on one device.

Both sides have the same weights, batch and precision, and train by the same loss, clipping and AdamW.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from medvlsm_jax.config import base_config
from medvlsm_jax.errors import UserError
from medvlsm_jax.losses import SMOOTHING, find_loss
from medvlsm_jax.models import abstract_model, override
from medvlsm_jax.models.apply import encode, encoder_inputs, forward
from medvlsm_jax.models.network import Network
from medvlsm_jax.models.parameters import merge_model, split_model
from medvlsm_jax.parallel.sharding import AXES, REPLACED, put_batch
from medvlsm_jax.pods.slices import abstract_run
from medvlsm_jax.training.freezing import set_training_mode, split_trained
from medvlsm_jax.training.step import adamw, make_train_step, new_state
from medvlsm_jax.weights.reference import find_reference
from medvlsm_jax.weights.reference.pytorch import require_torch

LEARNING_RATE, WEIGHT_DECAY, MAX_GRAD_NORM = 1e-5, 1e-3, 0.5
DECODERS = ("decoder", "segmentation_head")  # the parts of PyTorch's networks that frozen encoders leave to train
Batch = dict[str, Any]  # name -> array, or several
Run = Callable[[], Any]  # returns when its result is there; a training step returns its loss


# --- Ours ------------------------------------------------------------------------------------------------------------


def one_device() -> Mesh:
    """A mesh of the first device: PyTorch's side takes no more."""
    return Mesh(np.array(jax.devices()[:1]).reshape(1, 1), AXES)


def make_batch(model: Network, batch_size: int) -> Batch:
    """Random images and masks, and sentences of a usual length."""
    config, rng = model.config, np.random.default_rng(0)
    shape = (batch_size, config.image_size, config.image_size)
    batch: Batch = {
        "image": rng.integers(0, 256, (*shape, 3)).astype(np.uint8),
        "mask": (rng.random((*shape, 1)) < 0.3).astype(np.uint8),
    }
    if text := config.text:
        end = text.vocab_size - 1 if text.eos_token_id is None else text.eos_token_id
        positions = np.arange(text.context_length)
        ids = rng.integers(4, min(text.vocab_size, 500), (batch_size, text.context_length))
        ids = np.where(positions < 15, ids, np.where(positions == 15, end, text.pad_token_id or 0))
        batch["input_ids"] = ids.astype(np.int32)
        batch["attention_mask"] = np.tile(positions < 16, (batch_size, 1)).astype(np.int32)
    return batch


def with_attention(model: Network, attention: str) -> Network:
    """The same network with the same arrays, its attention by another implementation."""
    _, params, stats = split_model(model)
    config = override(model.config, {"attention": attention})
    return merge_model(nnx.graphdef(abstract_model(config)), {**params, **stats})


def largest_batch(name: str, dtype: str, most: int) -> int:
    """The largest power of two, up to `most`, of images whose training step takes at most 3/4 of the device's memory.

    By what XLA says of the step with plain attention; `most` where the device does not tell how much it has.
    """
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    size = 1 << (most.bit_length() - 1)
    while limit and size > 1 and step_bytes(name, dtype, size) > 0.75 * limit:
        size //= 2
    return size


def step_bytes(name: str, dtype: str, batch_size: int) -> int:
    """Memory of a training step of all parameters, as XLA plans it; no array is made."""
    config = base_config()
    config.update({"model": name, "dtype": dtype, "batch_size": batch_size, "attention": "xla"})
    planned = abstract_run(config, one_device()).lower_train().compile().memory_analysis()
    return planned.argument_size_in_bytes + planned.temp_size_in_bytes


def our_forward(model: Network, batch: Batch) -> Run:
    """Inference."""
    mesh = one_device()
    graphdef, params, stats = split_model(model)
    arrays, on_device = jax.device_put({**params, **stats}, mesh.devices.item()), put_batch(batch, mesh)
    infer = jax.jit(lambda arrays, batch: forward(merge_model(graphdef, arrays), batch))
    return lambda: jax.block_until_ready(infer(arrays, on_device))


def our_step(model: Network, batch: Batch, *, freeze_encoder: bool, is_cached: bool = False) -> Run:
    """A training step, of the decoder alone where the encoders' outputs are cached."""
    mesh, freezing = one_device(), {"freeze_encoder": freeze_encoder, "freeze_decoder": False}
    graphdef, params, stats = split_model(model)
    trainee = merge_model(graphdef, {**params, **stats})
    set_training_mode(trainee, **freezing)
    copies = jax.tree.map(jnp.copy, {**params, **stats})  # a step consumes its state
    trained, frozen = split_trained(model, {name: copies[name] for name in params}, **freezing)
    optimizer = adamw(weight_decay=WEIGHT_DECAY, max_grad_norm=MAX_GRAD_NORM)
    state = new_state(trained, frozen, {name: copies[name] for name in stats}, optimizer, mesh)
    step = make_train_step(nnx.graphdef(trainee), optimizer, find_loss("dice"), mesh, state)
    on_device = put_batch(batch, mesh)
    if is_cached:
        on_device = encoded(model, on_device)
    latest = [state]

    def run() -> float:
        latest[0], values = step(latest[0], on_device, LEARNING_RATE)
        jax.block_until_ready(latest[0])
        return float(values["loss"])

    return run


def encoded(model: Network, batch: Batch) -> Batch:
    """The batch with what the encoders make of images and sentences in their place."""
    run, features = nnx.jit(encode, static_argnums=1), {}
    for kind in encoder_inputs(model):
        name = f"{kind}_features"
        features[name] = run(model, kind, *(batch[replaced] for replaced in REPLACED[name]))
    return {"mask": batch["mask"], **features}


# --- PyTorch's -------------------------------------------------------------------------------------------------------


class PyTorch:
    """The same network in PyTorch, in training mode, with our weights, and the batch on its device.

    Raises:
        UserError: PyTorch or its implementation of the network is not installed, or it cannot use jax's device.
    """

    def __init__(self, model: Network, batch: Batch, *, freeze_encoder: bool = False):
        self.torch, self.module = require_torch(), find_reference(model)
        self.torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.device = pytorch_device(self.torch)
        self.is_bfloat16 = model.config.dtype == "bfloat16"
        self.reference = self.module.build(model).to(self.device).train()
        if freeze_encoder:
            self.freeze_encoder()
        config = model.config
        pixels = (batch["image"] / 255.0 - np.array(config.pixel_mean)) / np.array(config.pixel_std)
        tokens = [self.put(batch[name], np.int64) for name in ("input_ids", "attention_mask") if name in batch]
        self.inputs = [self.put(pixels.transpose(0, 3, 1, 2), np.float32), *tokens]
        self.target = self.put(batch["mask"].transpose(0, 3, 1, 2), np.float32)

    def put(self, array: np.ndarray, dtype: Any) -> Any:
        """A tensor on the device."""
        return self.torch.from_numpy(np.ascontiguousarray(array, dtype)).to(self.device)

    def freeze_encoder(self) -> None:
        """Encoders run as Hugging Face runs frozen ones, under no_grad; nothing in them is dropped or updated."""
        for name, child in self.reference.named_children():
            if name not in DECODERS:
                child.requires_grad_(False).eval()
                for tower in (child, *child.children()):  # of Hugging Face's CLIP the towers are called, not the whole
                    tower.forward = self.torch.no_grad()(tower.forward)

    def logits(self) -> Any:
        """Of the batch; in bfloat16 under autocast."""
        with self.torch.autocast(self.device, self.torch.bfloat16, enabled=self.is_bfloat16):
            return self.module.logits(self.reference, *self.inputs)

    def loss(self) -> Any:
        """1 - soft Dice, the mean over the batch: `find_loss("dice")`."""
        probability, target = self.logits().float().sigmoid(), self.target
        overlap, predicted, truth = (x.sum((1, 2, 3)) for x in (probability * target, probability, target))
        return (1 - (2 * overlap + SMOOTHING) / (predicted + truth + SMOOTHING)).mean()

    def finish(self) -> None:
        """Waits for the device."""
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def forward(self) -> Run:
        """Inference."""

        def run() -> None:
            with self.torch.inference_mode():
                self.logits()
            self.finish()

        self.reference.eval()
        return run

    def step(self, *, is_compiled: bool = False) -> Run:
        """A training step with PyTorch's own AdamW; the first call compiles loss and gradient if that is asked for."""
        self.torch.compiler.reset()  # what earlier networks left behind counts against its limit of recompilations
        compute = self.torch.compile(self.loss) if is_compiled else self.loss
        chosen = [parameter for parameter in self.reference.parameters() if parameter.requires_grad]
        optimizer = self.torch.optim.AdamW(chosen, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

        def run() -> float:
            optimizer.zero_grad(set_to_none=True)
            loss = compute()
            loss.backward()
            self.torch.nn.utils.clip_grad_norm_(chosen, MAX_GRAD_NORM)
            optimizer.step()
            self.finish()
            return loss.item()

        return run


def pytorch_device(torch: Any) -> str:
    """PyTorch's name of the device that jax uses; raises UserError where PyTorch cannot use it."""
    backend = jax.default_backend()
    if backend == "cpu":
        return "cpu"
    if backend == "gpu" and torch.cuda.is_available():
        return "cuda"
    raise UserError(
        f"PyTorch {torch.__version__} cannot use the {backend} that jax runs on: install its build for that"
    )
