"""What the perturbed sentences show: drops, tests, and the language-use score."""

import numpy as np
import pytest
from case_lines import make_case

from medvlsm_jax.evaluation.probes import is_used, probe_table, summarise_probes

RNG = np.random.default_rng(3)
RIGHT = RNG.uniform(0.6, 0.9, 40)


def lines(condition: str, dice: np.ndarray, **more) -> list[dict]:
    rows = enumerate(dice.tolist())
    return [make_case("isic", condition, d, mask=f"{i}.png", cluster=f"{i // 2}.png", **more) for i, d in rows]


@pytest.fixture
def probes(cases):
    """A model that looks for the location, and does not care for colours."""
    rows = lines("p6", RIGHT) + lines("p6/wrong_location", RIGHT - 0.3)
    rows += lines("p6/wrong_color", RIGHT + RNG.normal(0, 0.05, 40)) + lines("p6/other_image", RIGHT - 0.2)
    rows += lines("p6/wrong_size", (RIGHT - 0.1)[:10]) + lines("p0", RIGHT)
    return summarise_probes(cases(rows), ["p6", "p0"])


def test_drops_are_paired_by_record(probes):
    found = probes["isic"]["p6"]["probes"]
    assert found["wrong_location"]["drop"] == pytest.approx(0.3, abs=1e-6)
    assert found["wrong_size"]["drop"] == pytest.approx(0.1, abs=1e-6)
    assert found["wrong_size"]["dice"] == pytest.approx((RIGHT[:10] - 0.1).mean(), abs=1e-6)


def test_records_that_share_a_mask_are_not_taken_for_each_other(cases):
    """A blank, or the field of view, may be the mask of many images."""
    shared = {"mask": "blank.png"}
    rows = [make_case("isic", "p6", d, **shared, record=f"blank_{i}") for i, d in enumerate((0.9, 0.5, 0.1))]
    rows += [make_case("isic", "p6/none", d, **shared, record=f"blank_{i}") for i, d in ((1, 0.4), (2, 0.1))]
    found = summarise_probes(cases(rows), ["p6"])["isic"]["p6"]["probes"]["none"]
    assert (found["dice_right"], found["drop"], found["unchanged"]) == pytest.approx((0.3, 0.05, 1))


def test_records_whose_sentence_stays_as_it_is_are_counted(probes):
    found = probes["isic"]["p6"]["probes"]
    assert (found["wrong_size"]["n"], found["wrong_size"]["unchanged"], found["wrong_size"]["clusters"]) == (10, 30, 5)
    assert (found["wrong_location"]["n"], found["wrong_location"]["unchanged"]) == (40, 0)


def test_what_matters_is_significant_after_correction_and_what_does_not_is_not(probes):
    found = probes["isic"]["p6"]["probes"]
    assert is_used(found["wrong_location"]["low"], found["wrong_location"]["p_holm"])
    assert not is_used(found["wrong_color"]["low"], found["wrong_color"]["p_holm"])
    assert all(probe["p_holm"] >= probe["p"] for probe in found.values())


def test_language_use_is_the_drop_under_other_images_sentences(probes):
    use = probes["isic"]["p6"]["language_use"]
    assert use["mean"] == pytest.approx(0.2, abs=1e-6)
    assert use["low"] <= use["mean"] <= use["high"]
    assert (use["n"], use["clusters"]) == (40, 20)


def test_an_empty_sentence_has_nothing_to_perturb(probes):
    assert list(probes["isic"]) == ["p6"]


def test_a_sentence_for_all_images_has_no_language_use(cases):
    found = summarise_probes(cases(lines("text:a mole", RIGHT) + lines("text:a mole/none", RIGHT)), ["text:a mole"])
    assert found["isic"]["text:a mole"]["language_use"] is None
    assert "language use" not in probe_table(found)


def test_the_table_names_every_perturbation(probes):
    text = probe_table(probes)
    for name in ("wrong_location", "wrong_color", "other_image", "wrong_size", "language use"):
        assert name in text
