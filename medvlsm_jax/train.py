"""Finetunes a network.

    python -m medvlsm_jax.train --config=configs/clipseg.py:dataset=kvasir_polyp,prompt=p6 --workdir=DIR

Start-up precedence: the workdir's own newest checkpoint, then `config.init`, then random weights.
"""

import contextlib
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags
from flax import nnx
from jax.sharding import Mesh
from ml_collections import config_flags

from medvlsm_jax import atomic
from medvlsm_jax.config import reader_options
from medvlsm_jax.data.annotations import Record, check_classes, load_records, select_target, targets_of
from medvlsm_jax.data.arrayrecord import check_stored_size
from medvlsm_jax.data.cache import open_cache
from medvlsm_jax.data.facts import default_cache
from medvlsm_jax.data.integrity import verify
from medvlsm_jax.data.pipeline import Loader, steps_per_epoch, train_batches
from medvlsm_jax.data.pools import mixing_weights, select_amount
from medvlsm_jax.errors import UserError, run_program
from medvlsm_jax.evaluation.pictures import overlay
from medvlsm_jax.models import abstract_model
from medvlsm_jax.models.parameters import Arrays
from medvlsm_jax.training import sharding
from medvlsm_jax.training.checkpoints import CHECKPOINTS, Checkpoints, load_model_tokenizer, write_description
from medvlsm_jax.training.losses import find_loss
from medvlsm_jax.training.optimizer import adamw, schedule_factor
from medvlsm_jax.training.scoring import EvalStep, Fetch, score_records
from medvlsm_jax.training.start import Source, find_source, start_state, training_graph
from medvlsm_jax.training.state import make_eval_step, make_train_step
from medvlsm_jax.training.summary import model_table
from medvlsm_jax.writers import JsonlWriter, Progress, TensorBoardWriter, Writer, Writers


def train(config: ml_collections.ConfigDict, workdir: str | Path) -> dict[str, float]:
    """Trains as the config says, or continues what the workdir holds.

    Args:
        config: the fields of `medvlsm_jax.config.base_config`.
        workdir: receives config.json, model.json, tokenizer/, checkpoints/, metrics.jsonl and TensorBoard files.

    Returns:
        `step`, the last step; with a validation set `val_dice`, the best mean validation Dice, 0 to 1.

    Raises:
        UserError: something in the config, the data or the workdir does not fit.
        SystemExit: SIGTERM or Ctrl-C came; a checkpoint was written first.
    """
    with contextlib.ExitStack() as stack:
        # --- Devices and input ---------------------------------------------------------------------------------------
        workdir = Path(workdir)
        mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
        sharding.check_batch_size(config.batch_size, mesh, config.accumulation)
        reading_options = reader_options(config.data)
        if config.seed < 0:
            raise UserError(f"config.seed={config.seed}: give 0 or a larger number")
        train_records = read_split(config, "train", workdir)
        val_records = read_split(config, "val", workdir, is_required=False)
        weights = mixing_weights(train_records, config.pool.weights, config.pool.temperature)
        epoch_steps = steps_per_epoch(len(train_records), config.batch_size)
        total_steps = config.num_epochs * epoch_steps
        last_step = min(total_steps, config.max_steps or total_steps)

        # --- Model and state -----------------------------------------------------------------------------------------
        checkpoints = stack.enter_context(Checkpoints(workdir, is_writer=True))
        source = find_source(config, workdir, checkpoints.latest(), targets_of(train_records))
        check_classes([*train_records, *val_records], source.config.classes)
        check_stored_size([*train_records, *val_records], source.config.image_size)
        tokenizer = load_model_tokenizer(source.tokenizer, source.config)
        optimizer = adamw(weight_decay=config.weight_decay, max_grad_norm=config.max_grad_norm)
        state, progress = start_state(config, source, optimizer, mesh, checkpoints)
        first_step = int(state.step)
        process = (jax.process_index(), jax.process_count())
        if process[0] == 0:
            write_description(workdir, source.config, tokenizer)
            atomic.write_text(workdir / "config.json", config.to_json_best_effort(indent=1) + "\n")
            counts = (len(train_records), len(val_records))
            print(model_table(abstract_model(source.config), state.trained))
            print(describe(config, source, mesh, counts, (first_step, total_steps)))

        # --- Compiled steps ------------------------------------------------------------------------------------------
        loss = find_loss(config.loss)
        train_step = make_train_step(
            training_graph(config, source),
            optimizer,
            loss,
            mesh,
            state,
            accumulation=config.accumulation,
            seed=config.seed,
        )
        eval_step = make_eval_step(nnx.graphdef(abstract_model(source.config)), mesh, loss, probabilities=True)

        # --- Readers and writers -------------------------------------------------------------------------------------
        image_size, num_records = source.config.image_size, len(train_records) + len(val_records)
        num_records *= process[1]  # each process has a cache of its own, and all of them may be on one machine
        cache = stack.enter_context(open_cache(config.data.cache, image_size, num_records))
        reading = {"image_size": image_size, "classes": source.config.classes, "cache": cache}
        loader = Loader(train_records, tokenizer, config.prompt, seed=config.seed, **reading)
        val_loader = Loader(val_records, tokenizer, config.prompt, **reading)
        reader = train_batches(
            loader,
            config.batch_size,
            seed=config.seed,
            weights=weights,
            first_step=first_step,
            last_step=last_step,
            process=process,
            **reading_options,
        )
        stack.enter_context(contextlib.closing(reader))
        batches = sharding.prefetch(reader, mesh)
        writers = stack.enter_context(contextlib.closing(make_writers(config, workdir, first_step)))
        bar = Progress(total_steps, first_step, config.batch_size, is_shown=process[0] == 0)
        stack.enter_context(contextlib.closing(bar))
        stop_signals = stack.enter_context(catch_signals())
        guard = FiniteGuard(workdir)

        # --- Loop ----------------------------------------------------------------------------------------------------
        step = first_step
        while step < last_step and not stop_signals and not progress.early_stopping.should_stop(step // epoch_steps):
            _, batch = next(batches)
            factor = schedule_factor(config.schedule, step, total_steps, config.warmup_steps)
            learning_rate = progress.plateau.learning_rate * factor
            state, values = train_step(state, batch, jnp.float32(learning_rate))
            step += 1
            guard.watch(step, values)
            bar.advance()
            if step % config.log_every_steps == 0 or step % epoch_steps == 0:
                guard.check()
                logged = {f"train/{name}": float(value) for name, value in values.items()}
                writers.scalars(step, logged | {"train/learning_rate": learning_rate})
                bar.show(step, logged)

            score = None
            if step % epoch_steps == 0 and val_records:
                results = validate(
                    eval_step, state.arrays(), val_loader, mesh, config, writers, step, source.config.threshold
                )
                score = results["val/dice"]
                progress.update(results["val/loss"], score)
                bar.line(f"epoch {step // epoch_steps}/{config.num_epochs}", results)
            is_due = config.checkpoint_every_steps and step % config.checkpoint_every_steps == 0
            if step % epoch_steps == 0 or is_due or step == last_step or stop_signals:
                guard.check()
                checkpoints.save(step, state.arrays(), state.opt_state, progress.to_json(), score)

    if stop_signals:
        print(f"stopped at step {step} of {total_steps}: the same command continues from there", file=sys.stderr)
        sys.exit(128 + stop_signals[0])
    return {"step": float(step)} | ({} if progress.best_score is None else {"val_dice": progress.best_score})


def read_split(
    config: ml_collections.ConfigDict, split: str, workdir: Path, *, is_required: bool = True
) -> list[Record]:
    """The records of a split that can be used; empty where an optional split is.

    What is wrong with images, masks and prompts is found here, before anything else starts.
    """
    records = load_records(config.data_dir, config.dataset, split, is_required=is_required)
    report = workdir / "findings" / f"{split}.csv" if jax.process_index() == 0 else None
    cache = default_cache(config.data_dir)
    records = verify(records, config.prompt, on_bad=config.data.on_bad, cache=cache, report=report)
    records = select_target(records, config.target, is_required=is_required)
    return select_amount(records, config.data_num, config.seed) if split == "train" else records


def make_writers(config: ml_collections.ConfigDict, workdir: Path, first_step: int) -> Writers:
    """The writers of a run, on the first process alone."""
    if jax.process_index():
        return Writers([])
    writers: list[Writer] = [JsonlWriter(workdir / "metrics.jsonl", first_step)]
    if "tensorboard" in config.writers.split("+"):
        writers.append(TensorBoardWriter(workdir / "tensorboard", first_step))
    return Writers(writers)


def validate(
    eval_step: EvalStep,
    arrays: Arrays,
    loader: Loader,
    mesh: Mesh,
    config: ml_collections.ConfigDict,
    writers: Writers,
    step: int,
    threshold: float,
) -> dict[str, float]:
    """Mean loss, Dice and IoU over the validation records; writes them, and overlays of the first few.

    The means are over all records of a pool; each of its datasets has its own mean Dice as well.
    """
    pictures: list[np.ndarray] = []

    def draw(fetch: Fetch) -> None:
        if missing := config.num_overlays - len(pictures):
            rows = zip(fetch("image"), fetch("probability")[..., 0], fetch("mask")[..., 0], strict=True)
            pictures.extend(overlay(image, p > threshold, mask > 0) for image, p, mask in list(rows)[:missing])

    # In threads: worker processes would have to start anew in every epoch, and by the second one the images are cached.
    threads = config.data.num_threads * max(1, config.data.num_workers)
    values = score_records(eval_step, arrays, loader, mesh, config.batch_size, on_batch=draw, num_threads=threads)
    results = {f"val/{name}": float(values[name].mean(dtype=np.float64)) for name in ("dice", "iou")}
    datasets = np.array([record.dataset for record in loader.records])
    for dataset in dict.fromkeys(datasets.tolist()) if len(set(datasets)) > 1 else ():
        results[f"val/{dataset}/dice"] = float(values["dice"][datasets == dataset].mean(dtype=np.float64))
    weight = values["weight"].sum(dtype=np.float64)
    results["val/loss"] = float((values["loss"] * values["weight"]).sum(dtype=np.float64) / max(weight, 1.0))
    writers.scalars(step, results)
    for i, picture in enumerate(pictures):
        writers.picture(step, f"val/{i}", picture)
    return results


class FiniteGuard:
    """Stops a run whose loss or gradient is not finite, before a checkpoint of it is written.

    The values of a step are read when the next one is already under way, so that the device never waits.
    """

    def __init__(self, workdir: Path):
        self.workdir = workdir
        self.step, self.values = 0, {}

    def watch(self, step: int, values: Mapping[str, jax.Array]) -> None:
        """Checks the previous step and remembers this one."""
        self.check()
        self.step, self.values = step, dict(values)

    def check(self) -> None:
        """Raises UserError if a value that is being watched is not finite."""
        bad = {name: float(value) for name, value in self.values.items() if not np.isfinite(float(value))}
        if bad:
            raise UserError(
                f"training diverged at step {self.step}: {bad}; the last good checkpoint is in "
                f"{self.workdir / CHECKPOINTS}. Lower config.learning_rate or use config.dtype=float32"
            )


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """A list that receives SIGTERM (preemption) or SIGINT (Ctrl-C); a second Ctrl-C ends the program at once."""
    received: list[int] = []

    def remember(number: int, _: object) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        old = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: somebody else listens
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def describe(
    config: ml_collections.ConfigDict,
    source: Source,
    mesh: Mesh,
    num_records: tuple[int, int],
    steps: tuple[int, int],
) -> str:
    """What is about to run, in a few lines."""
    origin = {
        "checkpoint": f"continues at step {steps[0]}",
        "init": f"from {source.folder}",
        "random": "from random weights",
    }
    return (
        f"{config.model} {origin[source.kind]}, {source.config.dtype} on {mesh.size} {jax.devices()[0].platform} "
        f"devices {dict(mesh.shape)}\n"
        f"{config.dataset}, prompt {config.prompt}: {num_records[0]} training, {num_records[1]} validation records at "
        f"{source.config.image_size} px, {steps[1]} steps of {config.batch_size}\n"
        "compiling the first step ..."
    )


def main(_: list[str]) -> None:
    """Runs the command line."""
    result = train(flags.FLAGS.config, flags.FLAGS.workdir)
    best = f", best validation Dice {result['val_dice']:.4f}" if "val_dice" in result else ""
    print(f"finished at step {result['step']:.0f}{best}: {flags.FLAGS.workdir}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "A get_config(arg) file, as FILE or FILE:FIELD=VALUE,…")
    flags.DEFINE_string("workdir", None, "Where the run is kept; an unfinished run there is continued.")
    flags.mark_flags_as_required(["config", "workdir"])
    run_program(main)
