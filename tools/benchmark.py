"""Times us against PyTorch on the same device, weights, inputs and cores, in turn in one process.

    python tools/benchmark.py --model=clipseg,unet --batch_size=4       networks: inference and training steps
    python tools/benchmark.py train --model=clipseg --batch_size=4      training steps, torch.compile and input too
    python tools/benchmark.py device --output=device.json               all of it on one accelerator, in minutes
    python tools/benchmark.py input                                     the input pipeline
    python tools/benchmark.py metrics                                   Dice, IoU, HD95 and NSD, against MONAI
    python tools/benchmark.py evaluate --num_images=10000               a whole evaluation: speed and memory

The files of benchmarks/ say what each does. Figures are medians;
ratios are medians of those of each turn. In bfloat16 PyTorch runs under autocast.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # jax would take most of a GPU's memory from PyTorch

from absl import flags

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import device as benchmark_device
from benchmarks import evaluate as benchmark_evaluate
from benchmarks import input as benchmark_input
from benchmarks import metrics as benchmark_metrics
from benchmarks import networks as benchmark_networks
from benchmarks import train as benchmark_train
from medvlsm_jax.command_line import run_program
from medvlsm_jax.errors import UserError
from medvlsm_jax.folders import output_file

# Name on the command line -> the benchmark, and its defaults for flags that have none of their own.
BENCHMARKS = {
    "": (benchmark_networks.run, {"batch_size": 4}),
    "device": (benchmark_device.run, {"batch_size": 256, "num_images": 3200, "dtype": "bfloat16"}),
    "train": (benchmark_train.run, {"batch_size": 4, "num_images": 120}),
    "input": (benchmark_input.run, {"batch_size": 32, "num_images": 1600}),
    "metrics": (benchmark_metrics.run, {"batch_size": 32}),
    "evaluate": (benchmark_evaluate.run, {"batch_size": 32, "num_images": 10_000}),
}


def main(argv: list[str]) -> None:
    """Runs the command line."""
    args, name = flags.FLAGS, " ".join(argv[1:])
    if name not in BENCHMARKS:
        others = ", ".join(filter(None, BENCHMARKS))
        raise UserError(f"nothing is known of {name!r}: the benchmarks are {others} and, unnamed, the networks")
    run, defaults = BENCHMARKS[name]
    args.output = args.output and str(output_file("--output", args.output))
    for flag, value in ({"dtype": "float32"} | defaults).items():
        if args[flag].value is None:
            args[flag].value = value
    run(args)


if __name__ == "__main__":
    flags.DEFINE_list("model", None, "Presets, separated by commas; by default all networks, for train clipseg.")
    flags.DEFINE_integer(
        "batch_size", None, "Images at once: by default 4, for networks and train, or 32.", lower_bound=1
    )
    flags.DEFINE_integer("repeats", 5, "Timed runs of each.", lower_bound=1)
    flags.DEFINE_multi_enum("modes", list(benchmark_networks.MODES), benchmark_networks.MODES, "What of the networks.")
    flags.DEFINE_enum("dtype", None, ("float32", "bfloat16"), "Of the computation: float32, for device bfloat16.")
    flags.DEFINE_string("output", "", "A json file for the figures.")
    for benchmark in (benchmark_train, benchmark_input):
        benchmark.define_flags()
        flags.adopt_module_key_flags(benchmark)
    run_program(main, arguments=f"one of {', '.join(filter(None, BENCHMARKS))}; without, the networks")
