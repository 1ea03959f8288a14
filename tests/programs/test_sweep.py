"""Sweeps: which runs they have, how each is worked on, and what becomes of a sweep that is killed or asked to stop."""

import dataclasses
import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sweep as program

from configs import sweeps
from configs.sweeps import SWEEPS, get_sweep
from medvlsm_jax.config import base_config
from medvlsm_jax.errors import UserError
from medvlsm_jax.sweeping import devices
from medvlsm_jax.sweeping.children import Children, end_with_parent
from medvlsm_jax.sweeping.devices import Share, list_tpu_chips, share_devices, share_gpus
from medvlsm_jax.sweeping.runs import (
    EXTRA,
    evaluation_config,
    is_done,
    perform,
    read_run,
    training_config,
    try_lock,
    write_run,
)
from medvlsm_jax.sweeping.sweep import Outcome, Outcomes, outcome_table, run_sweep

ROOT = Path(__file__).parents[2]


def runs_of(arg: str) -> dict[str, Any]:
    return {config.name: config for config in get_sweep(arg)}


# --- Which runs a sweep has -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sweep", "count"),
    [
        ("zero_shot", 3 * 11),
        # Three polyp sets, skin and ulcers with ten prompt types, CAMUS with eight, BUSI and CheXlocalize with seven;
        # image-only networks for one class of six of them, three of CAMUS, ten of CheXlocalize.
        ("individual", 4 * (5 * 10 + 8 + 7 + 7) + 3 * (5 + 1 + 3 + 10)),
        ("endoscopy", 4 * 10 + 3),
        ("pooled", 4 + 3),
        ("cross_dataset", 3 * (4 * 10 + 3)),
        ("prompts", 4 * (5 * 10 + 8 + 7 + 7)),
        ("freezing", 4 * 8 * 2),
        ("fractions", 7 * 8 * 4),
        ("seeds", 7 * 8 * 3),
        ("grid", 1),
        ("search", 1),
    ],
)
def test_the_papers_experiments_have_a_run_for_each_network_dataset_and_prompt_type(sweep, count):
    runs = list(get_sweep(f"{sweep},checkpoints=converted"))
    assert len(runs) == len({run.name for run in runs}) == count
    assert all(run.init == f"converted/{run.model}" for run in runs)
    assert {run.is_trained for run in runs} == {sweep != "zero_shot"}


def test_every_sweep_is_counted():
    parametrized = test_the_papers_experiments_have_a_run_for_each_network_dataset_and_prompt_type.pytestmark[0]
    assert {sweep for sweep, _ in parametrized.args[1]} == set(SWEEPS)


def test_runs_of_one_name_in_several_sweeps_are_the_same_run():
    individual, prompts = runs_of("individual"), runs_of("prompts")
    assert set(prompts) < set(individual)
    assert all(individual[name] == config for name, config in prompts.items())
    others = [runs_of(f"{name},checkpoints=c") for name in SWEEPS if name not in ("individual", "prompts", "search")]
    names = [name for runs in [individual, *others] for name in runs]
    assert len(names) == len(set(names))


def test_a_run_is_a_training_config_with_what_is_scored_afterwards():
    for config in get_sweep("individual"):
        assert set(training_config(config)) == set(base_config())
        assert set(config) - set(base_config()) == set(EXTRA)
        assert config.evaluation.datasets == config.dataset


def test_networks_keep_their_own_recipe():
    runs = runs_of("pooled")
    assert (runs["cris-pooled_all-random"].batch_size, runs["cris-pooled_all-random"].learning_rate) == (32, 2e-5)
    assert runs["clipseg-pooled_all-random"].batch_size == 128
    unet = runs["unet-pooled_all-p0"]
    assert (unet.loss, unet.prompt, unet.target, unet.freeze_encoder) == ("dice_nonempty", "p0", "", False)
    assert runs_of("grid,models=biomedclipseg_d_tiny")["biomedclipseg_d_tiny"].file == "configs/biomedclipseg_d.py"


def test_a_zero_shot_run_scores_a_checkpoint_with_all_prompt_types_of_a_dataset():
    runs = runs_of("zero_shot,checkpoints=c")
    camus = runs["clipseg-camus-zero_shot"]
    assert camus.evaluation.prompts == "p0+p1+p2+p3+p4+p5+p6+p7"
    assert runs["clipseg-etis_polyp-zero_shot"].evaluation.prompts.endswith("+p9")
    assert not any(name.startswith("biomedclipseg-") for name in runs)


def test_what_one_endoscopy_set_taught_is_scored_on_all_six():
    run = runs_of("cross_dataset")["clipseg-bkai_polyp-p6-cross"]
    assert (run.dataset, run.evaluation.datasets) == ("bkai_polyp", "pooled_polyp")


def test_an_image_only_network_is_trained_alone_on_each_class():
    runs = [run for run in get_sweep("individual,models=unet,datasets=camus+isic")]
    assert [(run.dataset, run.target) for run in runs] == [
        ("camus", "left ventricular cavity"),
        ("camus", "myocardium"),
        ("camus", "left atrium cavity"),
        ("isic", ""),
    ]
    assert runs[1].name == "unet-camus-p0-myocardium"


def test_the_one_class_that_is_asked_for_is_the_only_one():
    runs = runs_of("individual,models=unet,datasets=camus+isic,target=myocardium")
    assert {name: run.target for name, run in runs.items()} == {
        "unet-camus-p0-myocardium": "myocardium",
        "unet-isic-p0": "myocardium",
    }


def test_a_grid_has_every_combination_of_the_axes_that_are_given():
    runs = runs_of(
        "grid,models=clipseg_tiny+unet_tiny,datasets=isic+busi,prompts=p0+attributes:size,class,seeds=1+2,"
        "fractions=0.5,freeze=true,data_dir=D,num_epochs=3,mesh.fsdp=2,evaluation.probe=true,evaluation.prompts=p1"
    )
    assert len(runs) == 2 * 2 * 2 + 2 * 2  # a network that reads no sentence once for all prompt types
    run = runs["clipseg_tiny-busi-attributes_size_class-data0.5-freeze_true-seed2"]
    assert (run.model, run.dataset, run.prompt, run.seed) == ("clipseg_tiny", "busi", "attributes:size,class", 2)
    assert (run.data_num, run.freeze_encoder, run.data_dir, run.num_epochs, run.mesh.fsdp) == ("0.5", True, "D", 3, 2)
    options = {"split": "test", "probe": True, "curves": False}
    assert run.evaluation.to_dict().items() >= ({"datasets": "busi", "prompts": "p1"} | options).items()
    assert runs_of("grid,dataset=isic+busi")["clipseg"].evaluation.datasets == "isic+busi"


def test_a_dataset_may_be_a_card_of_ones_own(tmp_path):
    (tmp_path / "wounds.toml").write_text('name = "my_wounds"\ngrammar = "busi"\n')
    run = runs_of(f"grid,datasets={tmp_path}/wounds.toml,prompts=p6")["clipseg-wounds-p6"]
    assert run.evaluation.datasets == f"{tmp_path}/wounds.toml"
    with pytest.raises(UserError, match=r"my_wounds has no prompt type p99, but p0, p1, .*, p6$"):
        runs_of(f"grid,datasets={tmp_path}/wounds.toml,prompts=p99")
    assert list(runs_of("grid,datasets=unheard_of,prompts=p99"))  # whose annotations may have it


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("colours", r"there is no sweep 'colours', but zero_shot, individual, .*, search"),
        ("", r"there is no sweep ''"),
        ("grid,colours=red", r"'colours' is neither an axis \(models, .*\) nor a field of the config \(.*data_dir.*\)"),
        ("grid,models=unet3", "unknown model 'unet3': choose one of .*unet_tiny"),
        ("grid,models=", "'models=' has no value: give models=A"),
        ("individual,dataset=isic", r"'dataset=isic' is what the axis datasets sets: give datasets=A\+B"),
        ("grid,seeds=one", "seed=one should be of type int"),
        ("grid,prompts=text:a b+text:a.b+text:a b", "two runs have the name clipseg-text_a_b"),
        ("zero_shot", "give checkpoints=DIR"),
        (
            "individual,models=unet,datasets=camus,target=heart",
            "target=heart: camus has no such class, but left ventric",
        ),
        ("grid,evaluation.tolerance=-1", "--tolerance"),
        ("grid,evaluation.ensemble=sentence", "--ensemble=sentence: 'sentence' is not known"),
        ("grid,evaluation.probe=true,evaluation.ensemble=flips", "--probe compares single sentences"),
        ("grid,evaluation.split=valid", "unknown split 'valid': choose one of train, val, test"),
        ("grid,evaluation.datasets=busi+none.toml", "card none.toml cannot be read"),
        ("grid,datasets=busi,prompts=p9", "busi has no prompt type p9, but p0, p1, .*, p6$"),
        ("grid,evaluation.prompts=attributes:colors", "'colors' is no attribute"),
        ("grid,evaluation.prompts=p6+", "'' is not one prompt type: give p0"),
    ],
)
def test_a_sweep_that_cannot_be_is_one_line(arg, message):
    with pytest.raises(UserError, match=message):
        list(get_sweep(arg))


def test_a_file_that_is_no_sweep_is_named(tmp_path):
    (tmp_path / "other.py").write_text("x = 1\n")
    for text, message in ((f"{tmp_path}/other.py:grid", "no function get_sweep"), ("none.py:grid", "does not exist")):
        with pytest.raises(UserError, match=message):
            program.load_sweep(text)
    names, runs = program.load_sweep(f"{ROOT}/configs/sweeps.py:grid,seeds=1+2")
    assert [run.name for run in runs] == ["clipseg-seed1", "clipseg-seed2"]
    assert "suggest" in names


# --- One run ----------------------------------------------------------------------------------------------------------


def small_run(arg: str) -> Any:
    """A run of the preset that this process alone knows, with the config of the fixture `run`."""
    fields = "models=small,batch_size=16,num_epochs=2,loss=dice_bce,learning_rate=3e-3,log_every_steps=1,num_overlays=2"
    (config,) = get_sweep(f"{arg},datasets=sample,{fields}")
    return config


@pytest.fixture
def small_file(monkeypatch):
    monkeypatch.setattr(sweeps, "config_file", lambda _: "clipseg")


@pytest.mark.usefixtures("small_file")
def test_a_run_is_trained_scored_and_then_done(sample, run_copy):
    config = small_run(f"grid,data_dir={sample},evaluation.prompts=p0+p6")
    write_run(run_copy, config, "started")
    (run_copy / "config.json").unlink()  # the training, which finds that it has ended, writes it anew
    assert not is_done(run_copy, config)
    perform(run_copy)
    assert is_done(run_copy, config)
    assert set(json.loads((run_copy / "config.json").read_text())) == set(base_config())
    metrics = json.loads((run_copy / "evaluation" / "metrics.json").read_text())
    assert {name: list(prompts) for name, prompts in metrics.items()} == {"sample": ["p0", "p6"]}


@pytest.mark.usefixtures("small_file")
def test_a_zero_shot_run_scores_its_checkpoint_alone(sample, run, tmp_path):
    config = small_run(f"zero_shot,data_dir={sample},init={run},prompts=p6")
    write_run(tmp_path, config, "started")
    perform(tmp_path)
    assert is_done(tmp_path, config)
    assert list(json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["sample"]) == ["p6"]
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.usefixtures("small_file")
def test_what_fails_is_not_done(tmp_path):
    config = small_run(f"grid,data_dir={tmp_path}/none")
    write_run(tmp_path, config, "started")
    with pytest.raises(UserError, match="data_dir"):
        perform(tmp_path)
    assert not is_done(tmp_path, config)


@pytest.mark.usefixtures("small_file")
@pytest.mark.parametrize(
    ("field", "message"),
    [("prompts=P6", "no prompt 'P6'"), ("datasets=sample+samples", "'samples' is not a dataset")],
)
def test_what_cannot_be_scored_is_not_trained(sample, tmp_path, monkeypatch, field, message):
    trained: list[Path] = []
    monkeypatch.setattr("medvlsm_jax.sweeping.runs.train", lambda config, workdir: trained.append(workdir))
    config = small_run(f"grid,data_dir={sample},evaluation.{field}")
    write_run(tmp_path, config, "started")
    with pytest.raises(UserError, match=message):
        perform(tmp_path)
    assert trained == []


def test_an_evaluation_reads_what_the_training_read_in_its_own_precision():
    (config,) = get_sweep("grid,data_dir=D,image_size=64,batch_size=4,dtype=bfloat16,mesh.fsdp=2,data.num_workers=3")
    evaluation: Any = evaluation_config(config)
    assert (evaluation.data_dir, evaluation.image_size, evaluation.batch_size) == ("D", 64, 4)
    assert (evaluation.mesh.fsdp, evaluation.data.num_workers) == (2, 3)
    assert (evaluation.dtype, evaluation.data.cache) == ("float32", "none")


def test_another_config_under_a_finished_name_is_an_error_that_names_the_fields(tmp_path):
    (config,) = get_sweep("grid,batch_size=4,data_dir=old")
    write_run(tmp_path, config, "done")
    (moved,) = get_sweep("grid,batch_size=4,data_dir=new,mesh.fsdp=2")
    assert is_done(tmp_path, moved)
    (changed,) = get_sweep("grid,batch_size=8,data_dir=new,plateau.factor=0.5")
    with pytest.raises(UserError, match=r"batch_size was 4 and is 8, plateau.factor was 0.1 and is 0.5. Give") as error:
        is_done(tmp_path, changed)
    assert "data_dir" not in str(error.value)
    write_run(tmp_path, config, "started")
    assert not is_done(tmp_path, changed)


# --- Many runs, here of a program that only pretends ------------------------------------------------------------------

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


def when(is_so: Callable[[], bool], action: Callable[[], object]) -> threading.Thread:
    """Does something as soon as something is so."""

    def wait() -> None:
        end = time.monotonic() + 20
        while not is_so() and time.monotonic() < end:
            time.sleep(0.01)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def statuses(outcomes: Outcomes) -> dict[str, str]:
    return {name.removeprefix("clipseg-"): outcome.status for name, outcome in outcomes.items()}


def test_finished_runs_are_skipped_failed_ones_tried_again_and_the_rest_go_on(tmp_path, capsys):
    pretence = Pretence(tmp_path)
    outcomes = pretence.run("grid,prompts=p0+p1+p2+p3")
    assert statuses(outcomes) == {"p0": "done", "p1": "failed", "p2": "failed", "p3": "done"}
    assert pretence.lines("clipseg-p0") == ["0", "1", "2"]
    told = capsys.readouterr().out
    assert f"clipseg-p1: failed after 0 s, exit status 2, see {tmp_path}/clipseg-p1/log.txt\n    no such file\n" in told
    assert "clipseg-p2: failed after 0 s, killed by SIGSEGV" in told

    outcomes = pretence.run("grid,prompts=p0+p1+p2+p3+p4")
    assert statuses(outcomes) == {"p0": "skipped", "p1": "failed", "p2": "failed", "p3": "skipped", "p4": "done"}
    assert pretence.lines("clipseg-p0") == ["0", "1", "2"]
    assert pretence.lines("clipseg-p1") == ["0", "1"]
    assert pretence.lines("clipseg-p1", "log.txt") == ["no such file"] * 2
    assert "1 done, 2 skipped, 2 failed;" in outcome_table(outcomes)


def test_nothing_starts_where_one_run_has_finished_with_another_config(tmp_path):
    pretence = Pretence(tmp_path)
    pretence.run("grid,prompts=p3")
    with pytest.raises(
        UserError, match="clipseg-p3 holds a finished run of another config: num_epochs was 1000 and is 9"
    ):
        pretence.run("grid,prompts=p0+p3,num_epochs=9")
    assert not (tmp_path / "clipseg-p0").exists()


def test_as_many_runs_as_there_are_shares_work_at_a_time(tmp_path, monkeypatch):
    looks: list[Path] = []

    def look(folder: Path, config: Any) -> bool:
        looks.append(folder)
        return is_done(folder, config)

    monkeypatch.setattr("medvlsm_jax.sweeping.sweep.is_done", look)
    cores = sorted(os.sched_getaffinity(0))
    shares = (Share(cores=frozenset(cores[:1])), Share({"CUDA_VISIBLE_DEVICES": "7"}))
    pretence = Pretence(tmp_path, steps=4, seconds=0.1, shares=shares)
    start = time.monotonic()
    outcomes = pretence.run("grid,seeds=1+2+3+4")
    seconds = [outcome.seconds for outcome in outcomes.values()]
    assert set(statuses(outcomes).values()) == {"done"}
    assert 0.8 * sum(seconds) / 2 < time.monotonic() - start < 0.8 * sum(seconds)
    logs = {pretence.lines(name, "log.txt")[0] for name in outcomes}
    assert logs == {f"{cores[:1]} 1 None", f"{cores} 1 7"}
    assert len(looks) <= 3 * 4  # runs that wait for a share are left alone


def test_a_signal_lets_the_runs_at_work_save_and_the_same_sweep_goes_on(tmp_path):
    pretence = Pretence(tmp_path, steps=20, seconds=0.05)
    signals: list[int] = []
    files = [tmp_path / f"clipseg-seed{seed}" / "steps.txt" for seed in (1, 2)]
    thread = when(
        lambda: all(file.exists() and file.stat().st_size for file in files), lambda: signals.append(signal.SIGTERM)
    )
    outcomes = pretence.run("grid,seeds=1+2+3", signals)
    assert statuses(outcomes) == {"seed1": "stopped", "seed2": "stopped", "seed3": "waiting"}
    assert pretence.lines("clipseg-seed1", "log.txt") == ["saved"]
    assert "2 stopped, 1 waiting;" in outcome_table(outcomes)
    thread.join()

    assert set(statuses(Pretence(tmp_path, steps=20, seconds=0.001).run("grid,seeds=1+2+3")).values()) == {"done"}
    for seed in (1, 2, 3):
        assert pretence.lines(f"clipseg-seed{seed}") == [str(step) for step in range(20)]


def test_a_run_that_another_program_works_on_is_waited_for(tmp_path):
    pretence = Pretence(tmp_path)
    lock = try_lock(tmp_path / "clipseg-seed1")
    assert lock is not None
    assert try_lock(tmp_path / "clipseg-seed1") is None
    other = tmp_path / "clipseg-seed2"
    thread = when(lambda: read_run(other).get("status") == "done", lock.close)
    start = time.monotonic()
    outcomes = pretence.run("grid,seeds=1+2")
    thread.join()
    assert statuses(outcomes) == {"seed1": "done", "seed2": "done"}
    assert time.monotonic() - start < 20  # the other run did not wait


def test_a_run_that_another_program_finishes_meanwhile_is_skipped(tmp_path):
    (config,) = get_sweep("grid,seeds=1")
    lock = try_lock(tmp_path / config.name)
    assert lock is not None

    def finish() -> None:
        write_run(tmp_path / config.name, config, "done")
        lock.close()

    timer = threading.Timer(0.3, finish)
    timer.start()
    assert statuses(Pretence(tmp_path).run("grid,seeds=1")) == {"seed1": "skipped"}
    timer.join()


# Sweeps in processes of their own, killed one after another; the runs that they leave behind work on.
KILLED = """
import os, signal, sys, time
sys.path[:0] = [{root!r}, {tests!r}, {tools!r}]
from pathlib import Path
from test_sweep import Pretence
pretence = Pretence(Path({output!r}), steps=12, seconds=0.03)
for delay in {delays}:
    if (sweep := os.fork()) == 0:
        pretence.run("grid,seeds=1+2+3+4+5")
        os._exit(0)
    time.sleep(delay)
    os.kill(sweep, signal.SIGKILL)
    os.waitpid(sweep, 0)
pretence.run("grid,seeds=1+2+3+4+5")
"""


def test_a_sweep_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path):
    Pretence(tmp_path / "whole", steps=12, seconds=0).run("grid,seeds=1+2+3+4+5")
    folders = {"root": str(ROOT), "tests": str(Path(__file__).parent), "tools": str(ROOT / "tools")}
    script = KILLED.format(**folders, output=str(tmp_path / "killed"), delays=[0.02, 0.1, 0.17, 0.25, 0.3])
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)

    whole, killed = (Pretence(tmp_path / name) for name in ("whole", "killed"))
    tables = [outcome_table(pretence.run("grid,seeds=1+2+3+4+5")) for pretence in (whole, killed)]
    assert tables[0] == tables[1]
    assert "5 skipped" in tables[0]
    for seed in range(1, 6):
        name = f"clipseg-seed{seed}"
        assert killed.lines(name) == whole.lines(name) == [str(step) for step in range(12)]
        assert read_run(killed.output / name) == read_run(whole.output / name)


def test_a_child_stops_when_its_sweep_is_gone():
    script = f"import os, signal, threading, time\n{inspect.getsource(end_with_parent)}end_with_parent()\n"
    command = [sys.executable, "-S", "-c", f"{script}print('ready', flush=True)\ntime.sleep(60)"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        assert child.poll() is None
        child.stdin.close()
        assert child.wait(10) == -signal.SIGTERM


# --- Devices ----------------------------------------------------------------------------------------------------------


def test_one_run_at_a_time_has_the_whole_machine():
    assert share_devices(1, {"CUDA_VISIBLE_DEVICES": "0,1"}) == [Share()]


@pytest.mark.parametrize(
    ("visible", "jobs", "expected"),
    [
        ("0,1,2,3", 2, ["0,1", "2,3"]),
        ("4,5,6", 2, ["4", "5"]),
        ("GPU-a,GPU-b", 2, ["GPU-a", "GPU-b"]),
    ],
)
def test_runs_share_gpus_evenly(visible, jobs, expected):
    shares = share_devices(jobs, {"CUDA_VISIBLE_DEVICES": visible})
    assert [share.environment for share in shares] == [{"CUDA_VISIBLE_DEVICES": gpus} for gpus in expected]


def test_more_runs_than_gpus_share_their_memory():
    environments = [share.environment for share in share_gpus(["0", "1"], 3)]
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in environments] == ["0", "1", "0"]
    assert {environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] for environment in environments} == {"0.450"}


def test_gpus_are_counted_where_no_variable_names_them(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: H100 (UUID: GPU-1)'\necho '  MIG 1g'\necho 'GPU 1: H100 (UUID: GPU-2)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert devices.list_gpus({}) == ["0", "1"]
    assert devices.list_gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == []
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert devices.list_gpus({}) == []


def test_runs_on_a_tpu_host_have_a_chip_and_a_port_each(tmp_path):
    for name in ("0", "1", "vfio"):
        (tmp_path / "vfio").mkdir(exist_ok=True)
        (tmp_path / "vfio" / name).touch()
    assert list_tpu_chips({}, tmp_path) == []
    assert list_tpu_chips({"TPU_ML_PLATFORM": "JAX"}, tmp_path) == ["0", "1"]
    tpu = {"TPU_VISIBLE_CHIPS": "2,3", "CUDA_VISIBLE_DEVICES": ""}
    first, second = (share.environment for share in share_devices(2, tpu))
    assert first == {
        "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_BOUNDS": "1,1,1",
        "TPU_VISIBLE_CHIPS": "2",
        "TPU_PROCESS_PORT": "8476",
    }
    assert (second["TPU_VISIBLE_CHIPS"], second["TPU_PROCESS_PORT"]) == ("3", "8477")
    with pytest.raises(UserError, match="--jobs=3: this machine has 2 TPU chips"):
        share_devices(3, tpu)


def test_runs_on_a_cpu_have_cores_each():
    cores = os.sched_getaffinity(0)
    environment = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "0,1"}
    shares = share_devices(len(cores), environment)
    assert sorted(core for share in shares for core in share.cores) == sorted(cores)
    assert all(len(share.cores) == 1 and not share.environment for share in shares)
    with pytest.raises(UserError, match="CPU cores, and each run needs one"):
        share_devices(len(cores) + 1, environment)


# --- The program ------------------------------------------------------------------------------------------------------


def run_program(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/sweep.py", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": ""})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"index": 2, "count": 2}, "--index=2: with --count=2 it is 0 to 1"),
        ({"trials": 3, "report": True}, "--trials does nothing with --report: leave that out"),
        ({"trials": 3, "index": 1, "count": 4}, "--trials does nothing with --index, --count"),
        ({"output": __file__}, "is a file: give a folder"),
    ],
)
def test_flags_that_do_not_go_together_are_named(flags, message):
    args = {"index": 0, "count": 1, "trials": 0, "report": False, "output": None}
    program.check_flags(types.SimpleNamespace(**args))
    with pytest.raises(UserError, match=message):
        program.check_flags(types.SimpleNamespace(**args | flags))


def test_a_real_run_that_fails_says_why_and_the_sweep_ends_with_1(tmp_path):
    sweep = f"--sweep=configs/sweeps.py:grid,models=unet_tiny,seeds=1+2+3,data_dir={tmp_path}/none"
    ended = run_program(sweep, f"--output={tmp_path}/runs", "--index=1", "--count=3")
    assert ended.returncode == 1
    assert "unet_tiny-p0-seed2: failed after" in ended.stdout
    assert f"    error: data_dir {tmp_path}/none does not exist" in ended.stdout
    assert "1 failed;" in ended.stdout
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["unet_tiny-p0-seed2"]
    assert "data_dir" in (tmp_path / "runs" / "unet_tiny-p0-seed2" / "log.txt").read_text()


def test_outcomes_are_a_line_for_each_run_and_a_count():
    text = outcome_table({"a": Outcome("done", 61.2), "b": Outcome("skipped"), "c": Outcome("failed", 2.0)})
    assert text.splitlines()[2:] == [
        "a       done       61",
        "b    skipped        -",
        "c     failed        2",
        "",
        "1 done, 1 skipped, 1 failed; 63 s of work",
    ]
