"""`benchmark.py`: networks against PyTorch's, inference and training steps.

`forward` is inference; `step` is a training step of all parameters: loss, gradient, clipping, AdamW; `decoder` is the
same with the encoder frozen.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import flags
from flax import nnx
from tqdm import tqdm

from benchmarks.runs import Batch, PyTorch, Run, make_batch, our_forward, our_step
from benchmarks.timing import machine, match_precision, peak_flops, settings, time_in_turn, warn_of_load
from medvlsm_jax import atomic, create_model
from medvlsm_jax.errors import UserError
from medvlsm_jax.models.network import Network
from medvlsm_jax.models.summary import flops_per_image, training_flops
from medvlsm_jax.text import table

NETWORKS = ("clipseg", "biomedclipseg", "cris", "unet", "unetplusplus", "deeplabv3plus")
OURS: dict[str, Callable[[Network, Batch], Run]] = {
    "forward": our_forward,
    "step": functools.partial(our_step, freeze_encoder=False),
    "decoder": functools.partial(our_step, freeze_encoder=True),
}
PYTORCH: dict[str, Callable[[Network, Batch], Run]] = {
    "forward": lambda model, batch: PyTorch(model, batch).forward(),
    "step": lambda model, batch: PyTorch(model, batch).step(),
    "decoder": lambda model, batch: PyTorch(model, batch, freeze_encoder=True).step(),
}
MODES = tuple(OURS)


def run(args: flags.FlagValues) -> None:
    """Measures and prints a table."""
    warn_of_load()
    match_precision(args.dtype)
    names, (peak, origin) = args.model or NETWORKS, peak_flops()
    results, rows = {}, [["network / mode", "ours s/image", "PyTorch s/image", "PyTorch / ours", "utilisation"]]
    with tqdm(total=len(names) * len(args.modes), unit="mode", disable=None) as bar:
        for name in names:
            bar.set_description(name)
            results[name] = measure(name, args, peak, bar)
    for name in names:
        for mode, values in results[name].items():
            cells = [f"{values[key]:.4f}" if key in values else "-" for key in ("ours", "pytorch")]
            cells += [f"{values['ratio']:.2f}" if "ratio" in values else "-", f"{100 * values['utilisation']:.0f} %"]
            rows.append([f"{name} / {mode}", *cells])
    print(f"batch {args.batch_size}, {args.dtype}; {machine()}")
    print(f"{settings(args.dtype)}; utilisation {origin}")
    print(table(rows))
    if args.output:
        atomic.write_text(Path(args.output), json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")


def measure(name: str, args: flags.FlagValues, peak: float, bar: tqdm) -> dict[str, dict[str, float]]:
    """Mode -> seconds an image, the ratio PyTorch / ours, as far as it can be had, and our share of the peak."""
    model = create_model(name, rngs=nnx.Rngs(0), dtype=args.dtype)
    batch, results, has_pytorch = make_batch(model, args.batch_size), {}, True
    for mode in args.modes:
        runs = {"ours": OURS[mode](model, batch)}
        try:
            runs |= {"pytorch": PYTORCH[mode](model, batch)} if has_pytorch else {}
        except UserError as error:
            bar.write(f"{name}: {error}")
            has_pytorch = False
        seconds = time_in_turn(runs, args.repeats)
        values = {side: float(np.median(turns)) / args.batch_size for side, turns in seconds.items()}
        if has_pytorch:
            values["ratio"] = float(np.median(seconds["pytorch"] / seconds["ours"]))
        results[mode] = values | {"utilisation": flops(model, mode) / values["ours"] / peak}
        bar.update()
    return results


def flops(model: Network, mode: str) -> float:
    """Floating-point operations that a mode needs for one image."""
    if mode == "forward":
        return flops_per_image(model)
    return training_flops(model.config, freeze_encoder=mode == "decoder", freeze_decoder=False, is_cached=False)
