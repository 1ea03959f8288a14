"""Finetunes a network.

    python -m medvlsm_jax.train --config=configs/clipseg.py:dataset=kvasir_polyp,prompt=p6 --workdir=DIR

Start-up precedence: the workdir's own newest checkpoint, then that of `config.resume`, then `config.init`, then random
weights. Exit status: 0 done, 75 stopped by a signal and saved (run it again), 130 the same by Ctrl-C, 2 an error.
"""

import contextlib
import sys
from pathlib import Path
from typing import Any

import jax
import ml_collections
from absl import flags
from flax import nnx
from ml_collections import config_flags

from medvlsm_jax import atomic
from medvlsm_jax.checkpoints.checkpoints import Checkpoints, Saved
from medvlsm_jax.checkpoints.model_folder import load_model_tokenizer, write_description
from medvlsm_jax.config import as_json, check_numbers, reader_options
from medvlsm_jax.data.annotations import check_classes, targets_of
from medvlsm_jax.data.arrayrecord import check_stored_size
from medvlsm_jax.data.reading.cache import open_cache
from medvlsm_jax.data.reading.pipeline import Loader, batch_records, steps_per_epoch, train_batches
from medvlsm_jax.data.reading.pools import mixing_weights
from medvlsm_jax.errors import UserError, run_program
from medvlsm_jax.logs.console import Progress
from medvlsm_jax.logs.writers import split_names
from medvlsm_jax.losses import find_loss
from medvlsm_jax.models import abstract_model
from medvlsm_jax.models.summary import model_table, training_flops
from medvlsm_jax.parallel import sharding
from medvlsm_jax.parallel.distributed import start_jax
from medvlsm_jax.parallel.interruption import catch_signals, leave
from medvlsm_jax.scoring.frozen_encoder import FrozenEncoder
from medvlsm_jax.scoring.validation import (
    Interrupted,
    eval_batch_size,
    make_eval_step,
    validate,
)
from medvlsm_jax.training.freezing import freezing
from medvlsm_jax.training.inputs import feature_entries, read_split
from medvlsm_jax.training.monitor import FiniteGuard, Meter, Profiler
from medvlsm_jax.training.progress import RunProgress, schedule_factor
from medvlsm_jax.training.reports import describe, open_writers
from medvlsm_jax.training.start import find_source, start_state, training_graph
from medvlsm_jax.training.step import TrainState, abstract_batch, adamw, make_train_step


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
    start_jax(config)
    with contextlib.ExitStack() as stack:
        # --- Devices and input ---------------------------------------------------------------------------------------
        interruption = stack.enter_context(catch_signals())
        workdir = Path(workdir)
        mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
        sharding.check_batch_size(config.batch_size, mesh, config.accumulation)
        reading_options = reader_options(config.data)
        check_numbers(config)
        profiler = Profiler(config.profile, workdir)
        split_names(config.writers)
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
        loss = find_loss(config.loss)
        state, progress = start_state(config, source, optimizer, mesh, checkpoints)
        first_step = int(state.step)
        checkpoints.check_room(to_save(state, progress.to_json(), config), state.frozen)
        process = (jax.process_index(), jax.process_count())
        if process[0] == 0:
            # What a continued run has written already is left alone: it may be killed while it writes.
            write_description(workdir, source.config, None if source.kind == "checkpoint" else tokenizer)
            atomic.write_text(workdir / "config.json", config.to_json_best_effort(indent=1) + "\n")
            counts = (len(train_records), len(val_records))
            print(model_table(abstract_model(source.config), state.trained))
            print(describe(config, source, mesh, counts, (first_step, total_steps)))
        if source.kind != "checkpoint":
            checkpoints.save_frozen(state.frozen)

        def is_over(step: int) -> bool:
            return step >= last_step or progress.early_stopping.should_stop(step // epoch_steps)

        def is_due_for_validation(step: int) -> bool:
            return bool(val_records) and step > progress.validated and step % epoch_steps == 0

        if is_over(first_step) and not is_due_for_validation(first_step):
            if source.kind == "resume":
                raise UserError(
                    f"config.resume={config.resume} has ended at step {first_step}: raise config.num_epochs, "
                    "config.max_steps or config.early_stopping.patience to go on"
                )
            return result(first_step, progress)

        # --- Readers -------------------------------------------------------------------------------------------------
        image_size, num_records = source.config.image_size, len(train_records) + len(val_records)
        local_processes = sharding.processes_on_this_host()  # each of them has caches of its own
        cache = stack.enter_context(open_cache(config.data.cache, image_size, num_records * local_processes))
        reading: dict[str, Any] = {"image_size": image_size, "classes": source.config.classes, "cache": cache}
        encoder = None
        if entries := stack.enter_context(feature_entries(config, source, num_records * local_processes)):
            rows = config.batch_size // process[1]
            encoder = FrozenEncoder(source.config, state.arrays(), mesh, entries, rows)
            reading["features"] = encoder.cache
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
        batches = sharding.prefetch(reader if encoder is None else map(encoder.complete, reader), mesh)

        # --- Compiled steps ------------------------------------------------------------------------------------------
        outputs = None if encoder is None else encoder.outputs
        train_step = make_train_step(
            training_graph(config, source),
            optimizer,
            loss,
            mesh,
            state,
            accumulation=config.accumulation,
            seed=config.seed,
            ema=config.ema,
        ).compile(state, abstract_batch(source.config, config.batch_size, mesh, outputs))
        eval_step = make_eval_step(nnx.graphdef(abstract_model(source.config)), mesh, loss, probabilities=True)
        if val_records:
            rows = eval_batch_size(len(val_records), config.batch_size, mesh)
            shapes = abstract_batch(source.config, rows, mesh, outputs)
            eval_step = eval_step.lower(state.arrays(), shapes).compile()

        # --- Writers -------------------------------------------------------------------------------------------------
        writers = open_writers(config, source, workdir, first_step, progress.log)
        stack.enter_context(contextlib.closing(writers))
        bar = Progress(total_steps, first_step, config.batch_size, is_shown=process[0] == 0)
        stack.enter_context(contextlib.closing(bar))
        guard = FiniteGuard(
            workdir,
            lambda step: [record.image.name for record in batch_records(loader, config.batch_size, step - 1, weights)],
            checkpoints.latest,
        )
        flops = training_flops(source.config, **freezing(config), is_cached=encoder is not None)
        meter = Meter(config.batch_size, flops * config.batch_size)
        stack.enter_context(contextlib.closing(profiler))

        # --- Loop ----------------------------------------------------------------------------------------------------
        step = saved_step = first_step
        is_stopped = False
        interruption.training_begins()
        while True:
            score = None
            if is_due_for_validation(step) and not is_stopped:
                guard.check()
                try:
                    results = validate(
                        eval_step,
                        state.arrays(),
                        val_loader,
                        encoder,
                        mesh,
                        config,
                        writers,
                        step,
                        source.config.threshold,
                        interruption,
                    )
                    score = results["val/dice"]
                    progress.update(step, results["val/loss"], score)
                    bar.line(f"epoch {step // epoch_steps}/{config.num_epochs}", results)
                except Interrupted:
                    is_stopped = True
                meter.restart()

            is_last = is_stopped or is_over(step)
            is_due = config.checkpoint_every_steps and step % config.checkpoint_every_steps == 0
            is_new = step > saved_step or score is not None
            if is_new and (step % epoch_steps == 0 or is_due or is_last):
                guard.check()
                progress.log = writers.positions()
                checkpoints.save(step, to_save(state, progress.to_json(), config), score)
                saved_step = step
            if is_last:
                break

            with meter.waiting():
                _, batch = next(batches)
            profiler.before(step)
            factor = schedule_factor(config.schedule, step, total_steps, config.warmup_steps)
            learning_rate = progress.plateau.learning_rate * factor
            state, values = train_step(state, batch, learning_rate)
            step += 1
            meter.steps += 1
            guard.watch(step, values)
            bar.advance()
            profiler.after(step, values)
            if step % config.log_every_steps == 0 or step % epoch_steps == 0:
                guard.check()
                logged = {name: float(value) for name, value in values.items()} | {"learning_rate": learning_rate}
                logged = {f"train/{name}": value for name, value in (logged | meter.report()).items()}
                writers.scalars(step, logged)
                bar.show(step, logged)
            is_stopped = interruption.is_heard(mesh)
        checkpoints.wait()  # what follows may take its time, which a preemption does not give

    if is_stopped:
        print(f"stopped at step {step} of {total_steps}: the same command continues from there", file=sys.stderr)
        sys.exit(interruption.exit_status)
    return result(step, progress)


def result(step: int, progress: RunProgress) -> dict[str, float]:
    """What `train` returns."""
    return {"step": float(step)} | ({} if progress.best_score is None else {"val_dice": progress.best_score})


def to_save(state: TrainState, progress: dict[str, Any], config: ml_collections.ConfigDict) -> Saved:
    """What a checkpoint holds."""
    return Saved({**state.trained, **state.stats}, state.opt_state, state.ema, progress, as_json(config))


def main(_: list[str]) -> None:
    """Runs the command line."""
    try:
        result = train(flags.FLAGS.config, flags.FLAGS.workdir)
    except SystemExit as stopped:
        if not jax.distributed.is_initialized():  # else jax ends the processes together
            leave(int(stopped.code or 0))
        raise
    best = f", best validation Dice {result['val_dice']:.4f}" if "val_dice" in result else ""
    print(f"finished at step {result['step']:.0f}{best}: {flags.FLAGS.workdir}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "A get_config(arg) file, as FILE or FILE:FIELD=VALUE,…")
    flags.DEFINE_string("workdir", None, "Where the run is kept; an unfinished run there is continued.")
    flags.mark_flags_as_required(["config", "workdir"])
    run_program(main)
