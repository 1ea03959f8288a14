"""Times us against PyTorch on the same device, weights, inputs and cores, in turn in one process.

    python tools/benchmark.py --model=clipseg,unet --batch_size=4       the networks
    python tools/benchmark.py input                                     the input pipeline: see benchmark_input.py

Prints seconds an image (medians), the ratio PyTorch / ours (above 1 we are faster) and, where the peak of the device is
known, model FLOPs utilisation. `forward` is inference; `step` is a training step of all parameters: loss, gradient,
clipping, AdamW; `decoder` is the same with the encoder frozen. In bfloat16 PyTorch runs under autocast.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import benchmark_input
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from tqdm import tqdm

from medvlsm_jax import atomic, create_model
from medvlsm_jax.errors import UserError, run_program
from medvlsm_jax.evaluation.report import table
from medvlsm_jax.models.network import Network
from medvlsm_jax.models.parameters import merge_model, split_model
from medvlsm_jax.training.losses import find_loss
from medvlsm_jax.training.optimizer import adamw, set_training_mode, split_trained
from medvlsm_jax.training.sharding import make_mesh, put_batch, tree_shardings
from medvlsm_jax.training.state import forward, make_train_step, new_state
from medvlsm_jax.training.summary import flops_per_image
from medvlsm_jax.weights.reference import find_reference
from medvlsm_jax.weights.reference.pytorch import require_torch

NETWORKS = ("clipseg", "biomedclipseg", "cris", "unet", "unetplusplus", "deeplabv3plus")
MODES = ("forward", "step", "decoder")
PACKAGES = ("jax", "flax", "torch", "transformers", "segmentation-models-pytorch")
# Dense bfloat16 FLOP/s of one chip, from the vendors' data sheets; by jax's device_kind.
PEAK_FLOPS = {
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}
Batch = dict[str, Any]  # name -> array
Runs = dict[str, Callable[[], Any]]


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
        ids = rng.integers(3, min(text.vocab_size, 500), (batch_size, text.context_length))
        ids = np.where(positions < 15, ids, np.where(positions == 15, end, text.pad_token_id or 0))
        batch["input_ids"] = ids.astype(np.int32)
        batch["attention_mask"] = np.tile(positions < 16, (batch_size, 1)).astype(np.int32)
    return batch


def our_runs(model: Network, batch: Batch) -> Runs:
    """Each mode as a function that returns when its result is there."""
    mesh = make_mesh()
    graphdef, params, stats = split_model(model)
    arrays = jax.device_put({**params, **stats}, tree_shardings({**params, **stats}, mesh))
    on_device = put_batch(batch, mesh)
    infer = jax.jit(lambda arrays, batch: forward(merge_model(graphdef, arrays), batch))

    def training(freeze_encoder: bool) -> Callable[[], Any]:
        freezing = {"freeze_encoder": freeze_encoder, "freeze_decoder": False}
        trainee = merge_model(graphdef, {**params, **stats})
        set_training_mode(trainee, **freezing)
        copies = jax.tree.map(jnp.copy, arrays)  # a step consumes its state
        trained, frozen = split_trained(model, {name: copies[name] for name in params}, **freezing)
        optimizer = adamw(weight_decay=1e-3, max_grad_norm=0.5)
        state = new_state(trained, frozen, {name: copies[name] for name in stats}, optimizer, mesh)
        step = make_train_step(nnx.graphdef(trainee), optimizer, find_loss("dice"), mesh, state)
        latest = [state]

        def run() -> None:
            latest[0], values = step(latest[0], on_device, jnp.float32(1e-5))
            jax.block_until_ready((latest[0], values))

        return run

    return {
        "forward": lambda: jax.block_until_ready(infer(arrays, on_device)),
        "step": training(False),
        "decoder": training(True),
    }


def pytorch_runs(model: Network, batch: Batch) -> Runs:
    """The same in PyTorch, eager; raises UserError when no implementation of the network is installed."""
    torch, module = require_torch(), find_reference(model)
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    reference = module.build(model).to(device)
    config = model.config
    pixels = (batch["image"] / 255.0 - np.array(config.pixel_mean)) / np.array(config.pixel_std)
    inputs = [torch.from_numpy(pixels.astype(np.float32).transpose(0, 3, 1, 2).copy()).to(device)]
    for name in ("input_ids", "attention_mask"):
        inputs.append(torch.from_numpy(batch[name].astype(np.int64)).to(device) if name in batch else None)
    target = torch.from_numpy(batch["mask"].astype(np.float32).transpose(0, 3, 1, 2)).to(device)
    autocast = torch.autocast(device, torch.bfloat16, enabled=config.dtype == "bfloat16")

    def finish() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def infer() -> None:
        reference.eval()
        with torch.inference_mode(), autocast:
            module.logits(reference, *inputs)
        finish()

    def training(is_trained: Callable[[str], bool]) -> Callable[[], Any]:
        chosen = {name: p for name, p in reference.named_parameters() if is_trained(name)}
        optimizer = torch.optim.AdamW(chosen.values(), lr=1e-5, weight_decay=1e-3)

        def run() -> None:
            reference.train()
            for name, parameter in reference.named_parameters():
                parameter.requires_grad_(name in chosen)
            optimizer.zero_grad(set_to_none=True)
            with autocast:
                probability = module.logits(reference, *inputs).float().sigmoid()
            sums = [x.sum((1, 2, 3)) for x in (probability * target, probability, target)]
            (1 - (2 * sums[0] + 1e-5) / (sums[1] + sums[2] + 1e-5)).mean().backward()
            torch.nn.utils.clip_grad_norm_(chosen.values(), 0.5)
            optimizer.step()
            finish()

        return run

    return {
        "forward": infer,
        "step": training(lambda name: True),
        "decoder": training(lambda name: name.startswith(("decoder.", "segmentation_head."))),
    }


def time_in_turn(runs: list[Callable[[], Any]], repeats: int) -> list[list[float]]:
    """Seconds of each run, A B A B …, after two of each that are not counted."""
    seconds: list[list[float]] = [[] for _ in runs]
    for turn in range(repeats + 2):
        for kept, run in zip(seconds, runs, strict=True):
            start = time.perf_counter()
            run()
            if turn >= 2:
                kept.append(time.perf_counter() - start)
    return seconds


def measure(name: str, args: flags.FlagValues, progress: tqdm) -> dict[str, dict[str, float]]:
    """Mode -> seconds an image, the ratio and the utilisation, as far as they can be had."""
    model = create_model(name, rngs=nnx.Rngs(0), dtype=args.dtype)
    batch = make_batch(model, args.batch_size)
    ours, theirs, results = our_runs(model, batch), {}, {}
    try:
        theirs = pytorch_runs(model, batch)
    except UserError as error:
        progress.write(f"{name}: {error}")
    peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
    for mode in args.modes:
        runs = [ours[mode], theirs[mode]] if theirs else [ours[mode]]
        seconds = time_in_turn(runs, args.repeats)
        values = {"ours": statistics.median(seconds[0]) / args.batch_size}
        if theirs:
            values["pytorch"] = statistics.median(seconds[1]) / args.batch_size
            values["ratio"] = statistics.median(b / a for a, b in zip(*seconds, strict=True))
        if peak and mode != "decoder":
            flops = flops_per_image(model) * (1 if mode == "forward" else 3)  # a gradient costs twice the forward pass
            values["utilisation"] = flops / values["ours"] / peak / len(jax.devices())
        results[mode] = values
        progress.update()
    return results


def machine() -> str:
    """What the figures were taken on."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    device = jax.devices()[0].device_kind
    return f"{device}, {os.cpu_count()} CPU cores, Python {platform.python_version()}, {', '.join(found)}"


def main(argv: list[str]) -> None:
    """Runs the command line."""
    args = flags.FLAGS
    is_input = argv[1:] == ["input"]
    args.batch_size = args.batch_size or (32 if is_input else 4)
    if is_input:
        return benchmark_input.run(args)
    if argv[1:]:
        raise UserError(
            f"nothing is known of {' '.join(argv[1:])}: the benchmarks are 'input' and, unnamed, the networks"
        )
    require_torch().set_num_threads(len(os.sched_getaffinity(0)))
    results, rows = {}, [["network / mode", "ours s/image", "PyTorch s/image", "PyTorch / ours", "utilisation"]]
    with tqdm(total=len(args.model) * len(args.modes), unit="mode") as progress:
        for name in args.model:
            progress.set_description(name)
            results[name] = measure(name, args, progress)
    for name in args.model:
        for mode, values in results[name].items():
            cells = [f"{values[key]:.4f}" if key in values else "-" for key in ("ours", "pytorch")]
            cells += [f"{values['ratio']:.2f}" if "ratio" in values else "-"]
            cells += [f"{100 * values['utilisation']:.0f} %" if "utilisation" in values else "-"]
            rows.append([f"{name} / {mode}", *cells])
    print(f"batch {args.batch_size}, {args.dtype}; {machine()}")
    print(table(rows))
    if args.output:
        atomic.write_text(Path(args.output), json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    flags.DEFINE_list("model", list(NETWORKS), "Presets, separated by commas.")
    flags.DEFINE_integer("batch_size", None, "Images at once: 4 for the networks, 32 for the input.", lower_bound=1)
    flags.DEFINE_integer("repeats", 5, "Timed runs of each.", lower_bound=1)
    flags.DEFINE_multi_enum("modes", list(MODES), MODES, "What is timed.")
    flags.DEFINE_enum("dtype", "float32", ("float32", "bfloat16"), "Of the computation.")
    flags.DEFINE_string("output", "", "A json file for the figures.")
    benchmark_input.define_flags()
    run_program(main)
