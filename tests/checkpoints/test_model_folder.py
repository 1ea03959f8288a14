"""A model that is read while its training goes on: weights and fingerprint are of one checkpoint."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvlsm_jax.checkpoints import model_folder
from medvlsm_jax.checkpoints.checkpoints import Checkpoints, Saved
from medvlsm_jax.checkpoints.model_folder import load_pretrained, save_model, write_description
from medvlsm_jax.errors import UserError
from medvlsm_jax.models.parameters import merge_model


@pytest.fixture
def workdir(network, tmp_path):
    """A run with one checkpoint, and a function that saves another one of some score, whose biases are its step."""

    def save(step: int, score: float) -> None:
        arrays = {name: jnp.full(x.shape, step, x.dtype) for name, x in network.params.items()}
        with Checkpoints(tmp_path, is_writer=True) as checkpoints:
            checkpoints.save(step, Saved(arrays, {"count": jnp.zeros(())}, {}), score)
            checkpoints.wait()

    write_description(tmp_path, network.config, None)
    save(1, 0.5)
    return tmp_path, save


def step_of(arrays) -> set[float]:
    return {float(value) for x in arrays.values() for value in np.unique(x)}


def test_a_better_checkpoint_that_comes_meanwhile_is_not_mixed_in(workdir, monkeypatch):
    folder, save = workdir
    before, load_arrays = load_pretrained(folder), Checkpoints.load_arrays

    def load_and_train_on(self, step, abstract):
        arrays = load_arrays(self, step, abstract)
        save(2, 0.9)
        return arrays

    monkeypatch.setattr(Checkpoints, "load_arrays", load_and_train_on)
    found = load_pretrained(folder)
    monkeypatch.undo()
    assert (found.step, step_of(found.arrays), found.fingerprint) == (1, {1.0}, before.fingerprint)
    better = load_pretrained(folder)
    assert (better.step, step_of(better.arrays)) == (2, {2.0})
    assert better.fingerprint != before.fingerprint


@pytest.mark.parametrize("is_read", [False, True], ids=["before it is read", "after it was read"])
def test_a_checkpoint_that_is_taken_away_meanwhile_is_one_line(workdir, monkeypatch, is_read):
    folder, _ = workdir
    load_arrays = Checkpoints.load_arrays

    def lose(self, step, abstract):
        if not is_read:
            shutil.rmtree(folder / "checkpoints" / "1")
        arrays = load_arrays(self, step, abstract)
        shutil.rmtree(folder / "checkpoints" / "1")
        return arrays

    monkeypatch.setattr(Checkpoints, "load_arrays", lose)
    with pytest.raises(
        UserError, match=r"checkpoints/1 was replaced while it was read .*: give the same command again"
    ):
        load_pretrained(folder)


def test_an_error_of_files_that_did_not_change_stays_what_it_is(workdir, monkeypatch):
    monkeypatch.setattr(Checkpoints, "load_arrays", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load_pretrained(workdir[0])


def test_the_best_is_chosen_once(workdir, monkeypatch):
    chosen, best = [], Checkpoints.best
    monkeypatch.setattr(Checkpoints, "best", lambda self: chosen.append(best(self)) or chosen[-1])
    load_pretrained(workdir[0])
    assert chosen == [1]


def test_all_processes_read_what_the_first_one_chose(workdir, monkeypatch):
    folder, save = workdir
    save(2, 0.9)
    monkeypatch.setattr(model_folder, "from_first_process", lambda _: 1)  # it did not see the newest yet
    assert load_pretrained(folder).step == 1


def test_a_model_folder_that_is_written_anew_has_another_fingerprint(network, tmp_path):
    model = merge_model(network.graphdef, jax.tree.map(jnp.asarray, network.params))
    prints = []
    for _ in range(2):
        save_model(tmp_path / "model", model)
        found = load_pretrained(tmp_path / "model")
        assert found.step is None
        assert found.fingerprint == load_pretrained(tmp_path / "model").fingerprint
        prints.append(found.fingerprint)
    assert prints[0] != prints[1]
