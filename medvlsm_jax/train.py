"""Finetunes a network.

    python -m medvlsm_jax.train --config=configs/clipseg.py:dataset=kvasir_polyp,prompt=p6 --workdir=DIR

Start-up precedence: the workdir's own newest checkpoint, then that of `config.resume`, then `config.init`, then random
weights. Exit status: 0 done, 75 stopped by a signal and saved (run it again), 130 the same by Ctrl-C, 2 an error.
"""

import contextlib
import functools
import sys
from pathlib import Path
from typing import Any

import jax
import ml_collections
from absl import flags
from ml_collections import config_flags

from medvlsm_jax import atomic
from medvlsm_jax.check_run import check_run
from medvlsm_jax.checkpoints.checkpoints import Checkpoints
from medvlsm_jax.checkpoints.model_folder import load_model_tokenizer, write_description
from medvlsm_jax.command_line import run_program
from medvlsm_jax.data.language.prompts import all_sentences
from medvlsm_jax.errors import UserError
from medvlsm_jax.folders import output_folder
from medvlsm_jax.losses import find_loss
from medvlsm_jax.models import abstract_model
from medvlsm_jax.models.apply import Batch
from medvlsm_jax.models.attention import chosen_attention
from medvlsm_jax.models.summary import model_table
from medvlsm_jax.parallel import sharding
from medvlsm_jax.parallel.distributed import start_jax
from medvlsm_jax.parallel.first_process import holding
from medvlsm_jax.parallel.interruption import catch_signals, leaving_at_once
from medvlsm_jax.scoring.batch_segmenter import abstract_batch
from medvlsm_jax.scoring.validation import Validation, open_validation
from medvlsm_jax.training.inputs import open_inputs
from medvlsm_jax.training.loop import loop
from medvlsm_jax.training.progress import RunProgress, Timetable, find_learning_rate
from medvlsm_jax.training.reports import Report, first_lines, open_report
from medvlsm_jax.training.run import Run
from medvlsm_jax.training.start import find_source, start_state, to_save, training_graph
from medvlsm_jax.training.step import TrainState, TrainStep, make_optimizer, make_train_step


def train(config: ml_collections.ConfigDict, workdir: str | Path) -> dict[str, float]:
    """Trains as the config says, or continues what the workdir holds.

    Args:
        config: the fields of `medvlsm_jax.config.base_config`.
        workdir: receives config.json, model.json, tokenizer/, checkpoints/, metrics.jsonl and TensorBoard files.

    Returns:
        `step`, the last step; with a validation set `val_dice`, the best mean validation Dice, 0 to 1.

    Raises:
        UserError: something in the config, the data or the workdir does not fit, or another program writes to it.
        SystemExit: SIGTERM or Ctrl-C came; a checkpoint was written first.
    """
    workdir = output_folder("--workdir", workdir)
    start_jax(config)
    with contextlib.ExitStack() as stack:
        interruption = stack.enter_context(catch_signals())
        stack.enter_context(holding("--workdir", workdir))
        mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
        is_asked_to_stop = functools.partial(interruption.is_heard, mesh)
        sets = check_run(config, workdir, mesh)
        checkpoints = stack.enter_context(Checkpoints(workdir, is_writer=True))
        source = find_source(config, workdir, checkpoints.latest(), [sets.train, sets.val])
        tokenizer = load_model_tokenizer(source.tokenizer, source.config)
        if tokenizer is not None:
            tokenizer.say_cut(all_sentences(sets.records, config.prompt), is_shown=jax.process_index() == 0)
        run = Run(config, workdir, mesh, sets, source, tokenizer)
        state, progress = start_state(config, source, mesh, checkpoints)
        step = int(state.step)
        begin(run, state, progress, checkpoints)
        timetable = Timetable(run.epoch_steps, run.last_step, config.checkpoint_every_steps, bool(sets.val), progress)
        if timetable.is_over(step) and not timetable.is_validation_due(step):
            check_went_on(run, step)
            return result(step, progress)

        inputs = stack.enter_context(open_inputs(run, state))
        train_step = compile_step(run, state, inputs.outputs)
        validation = open_validation(
            config, source.config, mesh, inputs.val_loader, inputs.encoder, state.arrays(), is_asked_to_stop
        )
        report = stack.enter_context(open_report(run, inputs, checkpoints, step, progress.log))
        interruption.training_begins()
        step, is_stopped = loop(
            state,
            step,
            timetable,
            validate=functools.partial(validate, run, progress, validation, report),
            save=functools.partial(save, run, progress, checkpoints, report),
            next_batch=inputs.next_batch,
            take_step=functools.partial(take_step, run, progress, train_step),
            report=report,
            is_asked_to_stop=is_asked_to_stop,
        )
        checkpoints.wait()  # what follows may take its time, which a preemption does not give
    if is_stopped:
        print(f"stopped at step {step} of {run.total_steps}: the same command continues from there", file=sys.stderr)
        sys.exit(interruption.exit_status)
    return result(step, progress)


def begin(run: Run, state: TrainState, progress: RunProgress, checkpoints: Checkpoints) -> None:
    """Writes what stays the same in a workdir, and says what is about to run."""
    source, is_new = run.source, run.source.kind != "checkpoint"
    checkpoints.check_room(to_save(state, progress, run.config), state.frozen)
    if jax.process_index() == 0:
        # What a continued run has written already is left alone: it may be killed while it writes.
        # config.json comes first: it says that the folder is a run's.
        atomic.write_text(run.workdir / "config.json", run.config.to_json_best_effort(indent=1) + "\n")
        write_description(run.workdir, source.config, run.tokenizer if is_new else None)
        print(model_table(abstract_model(source.config), state.trained))
        print(first_lines(run, int(state.step)))
    if is_new:
        checkpoints.save_frozen(state.frozen)


def check_went_on(run: Run, step: int) -> None:
    """Raises a UserError when a run that continues another one has nothing to do."""
    if run.source.kind == "resume":
        raise UserError(
            f"config.resume={run.config.resume} has ended at step {step}: raise config.num_epochs, "
            "config.max_steps or config.early_stopping.patience to go on"
        )


def compile_step(run: Run, state: TrainState, outputs: dict[str, Any] | None) -> TrainStep:
    """The training step, compiled; `outputs` of frozen encoders stand in its batches for what those read."""
    config = run.config
    step = make_train_step(
        training_graph(config, run.source),
        make_optimizer(config),
        find_loss(config.loss),
        run.mesh,
        state,
        accumulation=config.accumulation,
        seed=config.seed,
        ema=config.ema,
    )
    with chosen_attention() as chosen:
        compiled = step.compile(state, abstract_batch(run.source.config, config.batch_size, run.mesh, outputs))
    if chosen and jax.process_index() == 0:
        print("attention: " + ", ".join(f"{name} over {keys} tokens" for keys, name in sorted(chosen.items())))
    return compiled


def take_step(
    run: Run, progress: RunProgress, train_step: TrainStep, step: int, state: TrainState, batch: Batch
) -> tuple[TrainState, dict[str, Any]]:
    """The next state and its values, the learning rate among them."""
    rate = find_learning_rate(run.config, progress, step, run.total_steps)
    state, values = train_step(state, batch, rate)
    return state, values | {"learning_rate": rate}


def validate(
    run: Run, progress: RunProgress, validation: Validation | None, report: Report, step: int, state: TrainState
) -> float:
    """The mean validation Dice of a state, of which the rules and the writers are told."""
    assert validation is not None  # else none is due
    results, pictures = validation(state.arrays())
    progress.update(step, results["val/loss"], results["val/dice"])
    report.validated(step, f"epoch {step // run.epoch_steps}/{run.config.num_epochs}", results, pictures)
    return results["val/dice"]


def save(
    run: Run,
    progress: RunProgress,
    checkpoints: Checkpoints,
    report: Report,
    step: int,
    state: TrainState,
    score: float | None,
) -> None:
    """Starts to write a checkpoint, which knows how far the logs reach."""
    progress.log = report.positions()
    checkpoints.save(step, to_save(state, progress, run.config), score)


def result(step: int, progress: RunProgress) -> dict[str, float]:
    """What `train` returns."""
    return {"step": float(step)} | ({} if progress.best_score is None else {"val_dice": progress.best_score})


def main(_: list[str]) -> None:
    """Runs the command line."""
    with leaving_at_once():
        result = train(flags.FLAGS.config, flags.FLAGS.workdir)
    best = f", best validation Dice {result['val_dice']:.4f}" if "val_dice" in result else ""
    if jax.process_index() == 0:
        print(f"finished at step {result['step']:.0f}{best}: {flags.FLAGS.workdir}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "A get_config(arg) file, as FILE or FILE:FIELD=VALUE,…")
    flags.DEFINE_string("workdir", None, "Where the run is kept; an unfinished run there is continued.")
    flags.mark_flags_as_required(["config", "workdir"])
    run_program(main)
