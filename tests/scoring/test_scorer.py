"""Scores belong to their records whatever the order of rows, and host and devices do not wait for each other."""

from collections.abc import Iterator
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from drawn_scores import DrawnSegmenter

from medvlsm_jax.data.language.conditions import prompt_conditions
from medvlsm_jax.data.language.tokenizers import load_tokenizer
from medvlsm_jax.data.loading import load_records
from medvlsm_jax.data.reading import pipeline
from medvlsm_jax.data.reading.pipeline import Loader
from medvlsm_jax.errors import UserError
from medvlsm_jax.parallel.sharding import local_rows
from medvlsm_jax.scoring import scorer as module
from medvlsm_jax.scoring.batch_segmenter import BatchSegmenter
from medvlsm_jax.scoring.scorer import Scorer

PROMPTS = ("p0", "p6")


@pytest.fixture
def loader(sample) -> Loader:
    """Eleven records under two conditions."""
    records = load_records(sample, "sample", "train")[:11]
    variants = prompt_conditions(records, PROMPTS)
    return Loader(records, load_tokenizer("builtin", 16), "", image_size=16, variants=variants)


def look(record, condition, probability, truth) -> dict[str, float]:
    """Tells records and conditions apart."""
    return {"sum": float(probability.sum(dtype=np.float64)), "area": float(truth.sum()), "p6": float(condition == "p6")}


def make_scorer(mesh, segmenter=None, batch_size: int = 4, on_host=look, **options) -> Scorer:
    names = () if on_host is None else ("sum", "area", "p6")
    return Scorer(segmenter or DrawnSegmenter(mesh), mesh, batch_size, on_host, names, **options)


def joined(scorer: Scorer, loader: Loader) -> dict[str, dict[str, np.ndarray]]:
    """The scores of all records."""
    parts = list(scorer.score({}, loader))
    assert [index for part in parts for index in part.indices] == list(range(len(loader.records)))
    first = parts[0].scores
    return {
        name: {key: np.concatenate([part.scores[name][key] for part in parts]) for key in first[name]} for name in first
    }


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 1), (1, 4), (8, 16)])
def test_padding_is_left_out_and_the_order_is_the_records(loader, mesh_of, devices, batch_size):
    found = joined(make_scorer(mesh_of(devices), batch_size=batch_size), loader)
    other = joined(make_scorer(mesh_of(2), batch_size=4), loader)
    assert found.keys() == other.keys() == set(PROMPTS)
    for prompt, scores in found.items():
        assert (scores["p6"] == (prompt == "p6")).all()
        for key, values in scores.items():
            np.testing.assert_array_equal(values, other[prompt][key], err_msg=key)


def test_scores_are_matched_by_index_where_the_rows_are_in_another_order(loader, mesh_of, monkeypatch):
    expected = joined(make_scorer(mesh_of(2)), loader)
    # As on a mesh whose devices are not in the order of the processes; the last batch has its filling first.
    monkeypatch.setattr(pipeline, "own_rows", lambda *_: [3, 1, 0, 2])
    found = joined(make_scorer(mesh_of(2)), loader)
    for prompt in PROMPTS:
        for key, values in expected[prompt].items():
            np.testing.assert_array_equal(found[prompt][key], values, err_msg=key)


def test_what_other_processes_found_is_matched_by_index_too(loader, mesh_of, monkeypatch):
    expected = joined(make_scorer(mesh_of(2)), loader)
    monkeypatch.setattr(module, "gather", lambda rows: rows[[2, 0, 3, 1]])  # blocks of other processes, as they come
    found = joined(make_scorer(mesh_of(2)), loader)
    for prompt in PROMPTS:
        np.testing.assert_array_equal(found[prompt]["area"], expected[prompt]["area"])


def test_an_error_on_the_host_is_raised_after_the_other_processes_have_heard_of_it(loader, mesh_of, monkeypatch):
    def fail(record, *_) -> dict[str, float]:
        if record is loader.records[2]:
            raise UserError("no room")
        return {"sum": 0.0, "area": 0.0, "p6": 0.0}

    gathered: list[np.ndarray] = []
    monkeypatch.setattr(module, "gather", lambda rows: gathered.append(rows) or rows)
    with pytest.raises(UserError, match="no room"):
        joined(make_scorer(mesh_of(2), on_host=fail), loader)
    assert (gathered[0][:, 2] == 1).all()

    def with_trouble(rows: np.ndarray) -> np.ndarray:
        return np.concatenate([rows, rows + np.eye(rows.shape[1])[2]])

    monkeypatch.setattr(module, "gather", with_trouble)  # another process's rows
    with pytest.raises(UserError, match="another process of this evaluation cannot go on: see what it says"):
        joined(make_scorer(mesh_of(2)), loader)


# --- What is under way ------------------------------------------------------------------------------------------------


class WatchedSegmenter(BatchSegmenter):
    """Notes when a condition of a batch is dispatched, and when the host reads, or waits for, what comes of it."""

    threshold = 0.5

    def __init__(self, names: tuple[str, ...], monkeypatch):
        vars(self).update(names=names, events=[], numbers={}, arrays=[])
        watched = SimpleNamespace(**vars(np))
        watched.asarray = lambda array, *args: self.read(array, np.asarray, *args)
        monkeypatch.setattr(module, "np", watched)
        monkeypatch.setattr(module, "local_rows", lambda array: self.read(array, local_rows))

    def read(self, array, function, *args) -> np.ndarray:
        if id(array) in self.numbers:
            self.events.append(("read", self.numbers[id(array)]))
        return function(array, *args)

    def answers(self, arrays, batch, mirrored, *, has_counts=False) -> Iterator[tuple[str, dict]]:
        for name in self.names:
            number = len({*self.numbers.values()})
            self.events.append(("dispatched", number))
            mask = batch["mask"].astype(jnp.float32)
            values = {"probability": mask, "dice": mask[:, 0, 0, 0], "finite": mask[:, 0, 0, 0] < 2}
            values |= {"index": batch["index"], "valid": batch["valid"]}
            values = {key: jnp.copy(value) for key, value in values.items()}
            self.arrays.append(values.copy())  # they stay, so that no other gets their ids
            self.numbers.update({id(value): number for value in values.values()})
            yield name, values

    def check(self, batches: int) -> None:
        """Of each, the next was dispatched before the host read it."""
        count = batches * len(self.names)
        assert [number for kind, number in self.events if kind == "dispatched"] == list(range(count))
        for number in range(count - 1):
            assert self.events.index(("dispatched", number + 1)) < self.events.index(("read", number))


@pytest.mark.parametrize("names", [("p6",), PROMPTS], ids=["one condition", "two conditions"])
@pytest.mark.parametrize("on_host", [None, look], ids=["devices alone", "host scores"])
def test_the_next_is_under_way_before_the_host_waits_for_one(loader, mesh_of, monkeypatch, names, on_host):
    segmenter = WatchedSegmenter(names, monkeypatch)
    scorer = make_scorer(mesh_of(2), segmenter, on_host=on_host)
    assert sum(len(part.indices) for part in scorer.score({}, loader)) == len(loader.records)
    segmenter.check(batches=3)


def test_probabilities_that_are_not_finite_are_refused_and_the_record_named(loader, mesh_of, monkeypatch):
    answers = WatchedSegmenter.answers

    def with_nan(self, *args: object, **more: object) -> Iterator[tuple[str, dict]]:
        for name, values in answers(self, *args, **more):
            yield name, values | {"finite": values["index"] != 2}

    monkeypatch.setattr(WatchedSegmenter, "answers", with_nan)
    scorer = make_scorer(mesh_of(2), WatchedSegmenter(("p6",), monkeypatch))
    name = loader.records[2].image.name
    with pytest.raises(UserError, match=rf"the probabilities of {name} are not finite: the weights are not, or"):
        list(scorer.score({}, loader))


def test_maps_are_drawn_while_the_next_ones_are_under_way(loader, mesh_of, monkeypatch):
    segmenter = WatchedSegmenter(PROMPTS, monkeypatch)
    for answer in make_scorer(mesh_of(2), segmenter).segment({}, loader):
        assert answer.maps().shape == (4, 16, 16)
    segmenter.check(batches=3)
