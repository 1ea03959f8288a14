"""Sweeps whose runs are of a program that only pretends to train."""

import dataclasses
import sys
from pathlib import Path

from configs.sweeps import get_sweep
from medvlsm_jax.sweeping.children import Children
from medvlsm_jax.sweeping.devices import Share
from medvlsm_jax.sweeping.sweep import Outcomes, run_sweep

# Its work are the lines of a file, one after another; the prompt says what goes wrong.
PRETEND = """
import json, os, signal, sys, time
folder = sys.argv[1]
with open(folder + "/run.json") as file:
    run = json.load(file)
def save(*_):
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
prompt = run["config"]["prompt"]
with open(folder + "/steps.txt", "a+") as file:
    file.seek(0)
    first = len(file.readlines())
    for step in range(first, STEPS):
        time.sleep(SECONDS)
        file.write(f"{step}\\n")
        file.flush()
        if prompt == "p1":
            print("no such file", flush=True)
            sys.exit(2)
        if prompt == "p2":
            os.kill(os.getpid(), signal.SIGSEGV)
print(sorted(os.sched_getaffinity(0)), os.environ["JAX_NUM_PROCESSES"], os.environ.get("CUDA_VISIBLE_DEVICES"))
run["status"] = "done"
with open(folder + "/.new", "w") as file:
    json.dump(run, file)
os.replace(folder + "/.new", folder + "/run.json")
"""


@dataclasses.dataclass
class Pretence:
    """A sweep whose runs are pretended."""

    output: Path
    steps: int = 3
    seconds: float = 0.01  # each step takes
    shares: tuple[Share, ...] = (Share(), Share())

    def command(self, folder: Path) -> list[str]:
        script = PRETEND.replace("STEPS", str(self.steps)).replace("SECONDS", str(self.seconds))
        return [sys.executable, "-S", "-c", script, str(folder)]

    def run(self, arg: str, signals: list[int] | None = None) -> Outcomes:
        with Children(self.command, self.shares) as children:
            return run_sweep(list(get_sweep(arg)), self.output, children, [] if signals is None else signals)

    def lines(self, name: str, file: str = "steps.txt") -> list[str]:
        return (self.output / name / file).read_text().splitlines()
