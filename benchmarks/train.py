"""`benchmark.py train`: our training step against PyTorch's, and how long our loop waits for its input.

`full` trains all parameters, `frozen` those of the decoder; `ours, cached` is the frozen step on encoder outputs that
were computed before. PyTorch runs eagerly and through torch.compile, frozen encoders under no_grad. All sides of a
recipe run in turn; compilation is not counted. The input is measured by `medvlsm_jax.train` itself, on two epochs of
drawn images: in the second they are cached.
"""

import contextlib
import functools
import itertools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from flax import nnx
from tqdm import tqdm

from benchmarks.input import drawn_records
from benchmarks.runs import Batch, PyTorch, Run, make_batch, our_step, with_attention
from benchmarks.timing import (
    WARM_TURNS,
    first_line,
    machine,
    match_precision,
    peak_flops,
    settings,
    time_in_turn,
    warn_of_load,
)
from medvlsm_jax import atomic, create_model
from medvlsm_jax.config import base_config
from medvlsm_jax.data.language.tokenizers import BUILTIN, builtin_tokenizer
from medvlsm_jax.data.synthetic import SAMPLE
from medvlsm_jax.errors import UserError
from medvlsm_jax.models import preset
from medvlsm_jax.models.network import Network
from medvlsm_jax.models.summary import training_flops
from medvlsm_jax.text import table
from medvlsm_jax.train import train

RECIPES = ("full", "frozen")
OURS, CACHED, EAGER, COMPILED = "ours", "ours, cached", "PyTorch", "torch.compile"
TO_EAGER, TO_COMPILED = "speed_to_eager", "speed_to_compiled"
Figures = dict[str, float]


def define_flags() -> None:
    """The flags that only this benchmark has."""
    flags.DEFINE_boolean("compile", True, "Time torch.compile too.")
    flags.DEFINE_boolean("input_wait", True, "Train --num_images for two epochs and say how long the loop waits.")


def run(args: flags.FlagValues) -> None:
    """Measures and prints tables."""
    warn_of_load()
    match_precision(args.dtype)
    names, (peak, origin) = args.model or ["clipseg"], peak_flops()
    results: dict[str, dict[str, dict[str, Figures]]] = {}
    with tqdm(total=len(names) * len(RECIPES) * (WARM_TURNS + args.repeats), unit="turn", disable=None) as bar:
        for name in names:
            results[name] = {recipe: measure(name, recipe, args, peak, bar) for recipe in RECIPES}
    print(f"batch {args.batch_size}, {args.dtype}; {machine()}")
    print(f"{settings(args.dtype)}; utilisation {origin}")
    print(steps_table(results))
    waits = {name: input_wait(name, args) for name in names} if args.input_wait else {}
    for name, wait in waits.items():
        print(
            f"{name}, full, {args.num_images} cached images an epoch: the loop waits for input "
            f"{wait['input_wait']:.1%} of the time, at {wait['images_per_second']:.2f} images/s"
        )
    if args.output:
        content = {"machine": machine(), "peak_flops": peak, "results": results, "input": waits}
        atomic.write_text(Path(args.output), json.dumps(content, indent=1) + "\n")


# --- Steps -----------------------------------------------------------------------------------------------------------


def measure(
    name: str, recipe: str, args: flags.FlagValues, peak: float, bar: tqdm, attentions: Sequence[str] = ("auto",)
) -> dict[str, Figures]:
    """The figures of each side of a recipe, as far as it can be had; ours by each implementation of attention."""
    label = f"{name} {recipe}"
    bar.set_description(f"{label}: compiling ours")
    model = create_model(name, rngs=nnx.Rngs(0), dtype=args.dtype)
    batch = make_batch(model, args.batch_size)
    runs = our_sides(model, batch, recipe, attentions, bar, label)
    runs |= pytorch_sides(model, batch, recipe, args.compile, bar, label)
    bar.set_description(f"{label}: {', '.join(runs)}")
    seconds = time_in_turn(runs, args.repeats, bar.update)
    freezing = {"freeze_encoder": recipe == "frozen", "freeze_decoder": False}
    figures = {}
    for side, turns in seconds.items():
        speed = args.batch_size / float(np.median(turns))
        flops = training_flops(model.config, **freezing, is_cached=side == CACHED)
        figures[side] = {"images_per_second": speed, "utilisation": flops * speed / peak}
        for key, other in ((TO_EAGER, EAGER), (TO_COMPILED, COMPILED)):
            if other in seconds:
                figures[side][key] = float(np.median(seconds[other] / turns))
    return figures


def our_sides(
    model: Network, batch: Batch, recipe: str, attentions: Sequence[str], bar: tqdm, label: str
) -> dict[str, Run]:
    """Our steps, compiled: by each implementation of attention, and by the first with the encoders' outputs kept."""
    is_frozen, sides = recipe == "frozen", {}
    for attention in attentions:
        side = OURS if attention == "auto" else f"{OURS}, {attention}"
        make = functools.partial(our_step, with_attention(model, attention), batch, freeze_encoder=is_frozen)
        sides |= after_first_turn(side, make, bar, label)
    if is_frozen:
        network = with_attention(model, attentions[0])
        cached = functools.partial(our_step, network, batch, freeze_encoder=True, is_cached=True)
        sides |= after_first_turn(CACHED, cached, bar, label)
    return sides


def pytorch_sides(
    model: Network, batch: Batch, recipe: str, has_compiled: bool, bar: tqdm, label: str
) -> dict[str, Run]:
    """PyTorch's steps, compiled; without PyTorch there are none."""
    try:
        pytorch = PyTorch(model, batch, freeze_encoder=recipe == "frozen")
    except UserError as error:
        bar.write(f"{label}: without PyTorch: {error}")
        return {}
    sides = after_first_turn(EAGER, pytorch.step, bar, label)
    if has_compiled:
        bar.set_description(f"{label}: torch.compile compiles")
        sides |= after_first_turn(COMPILED, functools.partial(pytorch.step, is_compiled=True), bar, label)
    return sides


def after_first_turn(side: str, make: Callable[[], Run], bar: tqdm, label: str) -> dict[str, Run]:
    """A side that has run once, which compiles it; where that fails it is a line, for the others are worth having."""
    try:
        run = make()
        run()
    except Exception as error:  # a kernel, a C++ compiler, an unsupported GPU, its memory: of any kind
        bar.write(f"{label}: without {side}: {first_line(error)}")
        return {}
    return {side: run}


def steps_table(results: dict[str, dict[str, dict[str, Figures]]]) -> str:
    """One row for each side of each recipe; ratios are speeds, above 1 the row is the faster one."""
    rows = [["network / trained / side", "images/s", f"x {EAGER}", f"x {COMPILED}", "utilisation"]]
    for name, recipes in results.items():
        for recipe, sides in recipes.items():
            for side, values in sides.items():
                ratios = [f"{values[key]:.2f}" if key in values else "-" for key in (TO_EAGER, TO_COMPILED)]
                cells = [f"{values['images_per_second']:.2f}", *ratios, f"{values['utilisation']:.1%}"]
                rows.append([f"{name} / {recipe} / {side}", *cells])
    return table(rows)


# --- Input -----------------------------------------------------------------------------------------------------------


def input_wait(name: str, args: flags.FlagValues) -> Figures:
    """Images/s of the second epoch of a run, whose images are cached, and the share of it that the loop waited."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_epoch(folder, args.num_images)
        config = input_config(name, folder, args)
        with contextlib.redirect_stdout(sys.stderr):
            steps = train(config, folder / "run")["step"]
        lines = (folder / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    return median_after([json.loads(line) for line in lines], steps / 2)


def input_config(name: str, folder: Path, args: flags.FlagValues) -> Any:
    """A run of full finetuning as users start it, with a tokenizer that needs no download."""
    config, (_, model) = base_config(), preset(name)
    config.update({"data_dir": str(folder / "data"), "dataset": SAMPLE, "model": name, "dtype": args.dtype})
    config.update({"batch_size": args.batch_size * len(jax.devices()), "num_epochs": 2, "writers": ""})
    config.update({"tokenizer": BUILTIN, "data": {"cache": str(folder / "cache")}})
    if model.text and model.text.eos_token_id is not None:
        config.model_options = json.dumps({"text": {"eos_token_id": builtin_tokenizer().eos_token_id}})
    return config


def write_epoch(folder: Path, num_images: int) -> None:
    """A data set in `folder`/data of so many training records, drawn ones under names of their own."""
    root, entries = folder / "data" / SAMPLE, []
    for name in ("images", "masks", "anns"):
        (root / name).mkdir(parents=True)
    for i, record in zip(range(num_images), itertools.cycle(drawn_records(folder / "drawn")), strict=False):
        image, mask = f"{i}_{record.image.name}", f"{i}_{record.mask.name}"
        os.link(str(record.image), root / "images" / image)
        os.link(str(record.mask), root / "masks" / mask)
        entries.append({"img_name": image, "mask_name": mask, "prompts": dict(record.prompts)})
    (root / "anns" / "train.json").write_text(json.dumps(entries))


def median_after(lines: list[dict[str, Any]], step: float) -> Figures:
    """The medians of what train.py logged after a step, for the first interval holds the writing of a checkpoint."""

    def median(name: str) -> float:
        return statistics.median(x["value"] for x in lines if x["name"] == f"train/{name}" and x["step"] > step)

    return {name: median(name) for name in ("input_wait", "images_per_second")}
