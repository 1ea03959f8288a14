"""Compiles the training and the evaluation step for a TPU slice that is not there, and says whether they fit.

    python tools/compile_for_pod.py --topology=v5e:16x16 --config=configs/clipseg.py --images_per_chip=32
    python tools/compile_for_pod.py --topology=v5p:4x4x4 --config=configs/cris.py --config.mesh.fsdp=8 --output=pod.json

The compiler is the TPU's own (`pip install libtpu`), the steps are those of `medvlsm_jax.train`; no array is made, and
neither data nor checkpoint, tokenizer or TPU is needed. Prints the memory of a chip against what it has, operations,
what chips exchange, the estimated time of a step and how that scales from one chip; minutes for each slice.
`config.dtype=auto` means bfloat16 here. Exits with 3 when a step does not fit.
"""

import copy
import dataclasses
import json
import math
import os
import sys
import time
from importlib.metadata import version
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # a TPU that is there is left alone

import jax
import ml_collections
from absl import flags
from jax.sharding import Mesh
from ml_collections import config_flags
from tqdm import tqdm

from medvlsm_jax import atomic
from medvlsm_jax.command_line import run_program
from medvlsm_jax.errors import UserError
from medvlsm_jax.folders import output_file
from medvlsm_jax.pods.estimate import VECTOR_OPERATIONS, Estimate, estimate, sum_by_kind
from medvlsm_jax.pods.slices import Slice, abstract_run, bytes_per_chip, find_slice, model_flops, slice_mesh
from medvlsm_jax.text import percent, table

DOES_NOT_FIT = 3


def for_slice(config: ml_collections.ConfigDict, images: int, mesh: Mesh, chips: Slice) -> ml_collections.ConfigDict:
    """The config with so many images a chip on another slice; `fsdp` is as much of the mesh's as divides the slice."""
    number = len(chips.devices)
    fsdp = math.gcd(mesh.shape["fsdp"], number)
    other = copy.deepcopy(config)
    other.batch_size = images * number
    other.mesh.data, other.mesh.fsdp = number // fsdp, fsdp
    return other


def compile_train(config: ml_collections.ConfigDict, chips: Slice) -> Estimate:
    """The estimate of the training step."""
    run = abstract_run(config, slice_mesh(chips, config))
    return estimate(run.lower_train(), chips, loops=config.accumulation)


def compile_eval(config: ml_collections.ConfigDict, chips: Slice) -> Estimate:
    """The estimate of the evaluation step, beside which the rest of the training state waits."""
    run = abstract_run(config, slice_mesh(chips, config))
    kept = bytes_per_chip(run.state) - bytes_per_chip(run.state.arrays())
    return estimate(run.lower_eval(), chips, kept=kept)


def gigabytes(value: float) -> str:
    """Bytes for a table."""
    return "-" if math.isnan(value) else f"{value / 1e9:.2f} GB"


def step_table(steps: dict[str, Estimate]) -> str:
    """Memory, operations and time of one chip, a column for each step."""
    lines: list[tuple[str, Any]] = [
        (name, lambda step, name=name: gigabytes(getattr(step.memory, name) if step.memory else math.nan))
        for name in ("arguments", "outputs", "temporaries", "code", "kept")
    ]
    lines += [
        ("memory", lambda step: gigabytes(step.total_memory)),
        ("of a chip's", lambda step: f"{gigabytes(step.limit)}, {'fits' if step.fits else 'DOES NOT FIT'}"),
        ("operations", lambda step: f"{step.flops / 1e12:.2f} TFLOP"),
        ("bytes accessed", lambda step: gigabytes(step.bytes_accessed)),
        ("computing, estimated", lambda step: milliseconds(step.compute_seconds)),
        ("exchanging, estimated", lambda step: milliseconds(step.collective_seconds)),
        ("waiting for it", lambda step: milliseconds(step.waiting_seconds)),
    ]
    rows = [["one chip, one step", *steps]]
    return table(rows + [[name, *(value(step) for step in steps.values())] for name, value in lines])


def milliseconds(seconds: float) -> str:
    """Seconds for a table."""
    return "-" if math.isnan(seconds) else f"{1e3 * seconds:.2f} ms"


def collectives_table(steps: dict[str, Estimate]) -> str:
    """What chips exchange in each step."""
    rows = [["collective", "among chips", "count", "whole", "sent by a chip"]]
    for name, step in steps.items():
        for row in sum_by_kind(step.collectives):
            sizes = [f"{row[key] / 1e6:.2f} MB" for key in ("bytes", "sent_bytes")]
            rows.append([f"{name} / {row['kind']}", str(row["chips"]), str(row["count"]), *sizes])
    return table(rows) if len(rows) > 1 else "no collectives"


def scaling_row(chips: Slice, config: ml_collections.ConfigDict, step: Estimate, flops: float) -> dict[str, Any]:
    """One slice of the scaling table as json values; efficiency is added when that of one chip is known."""
    return {
        "topology": chips.name,
        "chips": len(chips.devices),
        "mesh": dict(config.mesh),
        "images_per_chip": config.batch_size // len(chips.devices),
        "memory": step.total_memory,
        "seconds": step.seconds,
        "images_per_second": config.batch_size / step.seconds,
        "utilisation": flops / step.seconds / chips.chip.flops,
    }


def scaling_table(rows: list[dict[str, Any]]) -> str:
    """The slices, smallest first."""
    cells = [["slice", "chips", "data x fsdp", "images a chip", "memory", "step", "images/s", "MFU", "efficiency"]]
    for row in rows:
        shares = [percent(row[name]) + " %" for name in ("utilisation", "efficiency")]
        mesh = f"{row['mesh']['data']} x {row['mesh']['fsdp']}"
        sizes = [gigabytes(row["memory"]), milliseconds(row["seconds"]), f"{row['images_per_second']:.0f}"]
        cells.append([row["topology"], str(row["chips"]), mesh, str(row["images_per_chip"]), *sizes, *shares])
    return table(cells)


def as_json(
    config: ml_collections.ConfigDict, chips: Slice, steps: dict[str, Estimate], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """All figures; bytes, operations and seconds, NaN as null."""
    content = {
        "topology": chips.name,
        "chip": dataclasses.asdict(chips.chip),
        "versions": {name: version(name) for name in ("jax", "libtpu")},
        "config": json.loads(config.to_json_best_effort()),
        "fits": all(step.fits for step in steps.values()),
        "steps": {
            name: dataclasses.asdict(step)
            | {"fits": step.fits, "seconds": step.seconds, "collectives": sum_by_kind(step.collectives)}
            for name, step in steps.items()
        },
        "scaling": rows,
    }
    return jax.tree.map(lambda x: None if isinstance(x, float) and math.isnan(x) else x, content)


def compile_all(
    config: ml_collections.ConfigDict, chips: Slice, smaller: list[Slice]
) -> tuple[dict[str, Estimate], list[dict[str, Any]]]:
    """The steps of a run on a slice, and the scaling table: that of one chip, the smaller slices, the slice itself."""
    mesh, images = slice_mesh(chips, config), config.batch_size // len(chips.devices)
    flops, steps, rows = images * model_flops(config), {}, []
    with tqdm(total=len(smaller) + 2, unit="program", disable=None) as bar:
        for other in smaller:
            bar.set_description(other.name)
            its_config = for_slice(config, images, mesh, other)
            rows.append(scaling_row(other, its_config, compile_train(its_config, other), flops))
            bar.update()
        its_config = for_slice(config, images, mesh, chips)
        for name, compile_step in (("train", compile_train), ("eval", compile_eval)):
            bar.set_description(f"{chips.name} {name}")
            steps[name] = compile_step(its_config, chips)
            bar.update()
    rows.append(scaling_row(chips, its_config, steps["train"], flops))
    for row in rows:
        row["efficiency"] = rows[0]["seconds"] / row["seconds"]
    return steps, rows


def check_fit(steps: dict[str, Estimate]) -> None:
    """Ends the program with 3 and one line on stderr when a step does not fit."""
    if wrong := {name: step for name, step in steps.items() if not step.fits}:
        needed = ", ".join(f"{name} needs {gigabytes(step.total_memory)}" for name, step in wrong.items())
        limit = gigabytes(next(iter(wrong.values())).limit)
        print(
            f"does not fit: {needed} of the {limit} of a chip. Fewer images a chip, config.accumulation, "
            "config.remat=full or a larger config.mesh.fsdp need less",
            file=sys.stderr,
        )
        sys.exit(DOES_NOT_FIT)


def main(_: list[str]) -> None:
    """Runs the command line."""
    args, config, started = flags.FLAGS, flags.FLAGS.config, time.monotonic()
    output = output_file("--output", args.output) if args.output else None
    chips = find_slice(args.topology)
    number = len(chips.devices)
    if args.images_per_chip:
        config.batch_size = args.images_per_chip * number
    if config.batch_size % number:
        raise UserError(
            f"config.batch_size={config.batch_size} is not a multiple of the {number} chips: give --images_per_chip"
        )
    one_chip = find_slice(f"{chips.name.partition(':')[0]}:{'x'.join('1' * len(chips.shape))}")
    smaller = [one_chip, *map(find_slice, args.compare)] if number > 1 else []
    steps, rows = compile_all(config, chips, smaller)
    mesh = dict(slice_mesh(chips, config).shape)
    print(f"{config.model}, {config.batch_size} images over {number} {chips.chip.name} {mesh}, compiled by")
    print(f"libtpu {version('libtpu')} under jax {jax.__version__} in {time.monotonic() - started:.0f} s\n")
    print("\n\n".join([step_table(steps), collectives_table(steps), scaling_table(rows)]))
    print(
        "\nTimes are estimates from the compiler's cycles and the vendor's bandwidths (pods/estimate.py); of a kernel:"
    )
    print(f"FLOPs / peak + {VECTOR_OPERATIONS} x exponentials / vector operations, but at least bytes / bandwidth.")
    if output is not None:
        atomic.write_text(output, json.dumps(as_json(config, chips, steps, rows), indent=1) + "\n")
    check_fit(steps)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "A get_config(arg) file, as FILE or FILE:FIELD=VALUE,…")
    flags.DEFINE_string("topology", None, "The slice: v5e:2x2 … v5e:16x16, v5p:2x2x1 …, v6e:2x2 …")
    flags.DEFINE_integer("images_per_chip", None, "Sets config.batch_size to this times the chips.", lower_bound=1)
    flags.DEFINE_list("compare", [], "Slices besides that of one chip to estimate the scaling for: v5e:2x2,v5e:4x4")
    flags.DEFINE_string("output", "", "A json file for the figures.")
    flags.mark_flags_as_required(["config", "topology"])
    run_program(main)
