"""Charts: deterministic, for print, and able to hold any names and numbers."""

import re
import threading

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from medvlsm_jax.reporting import figures
from medvlsm_jax.reporting.figures import Bar

NAMES = ["clipseg_tiny", "costs $5 & $6 <b>", "息肉", "a very long sentence about one polyp in the upper left corner"]


def boxes(names=("a", "b"), n=30) -> Figure:
    rng = np.random.default_rng(0)
    panels = {f"set {i}": {prompt: {name: rng.random(n) for name in names} for prompt in ("p1", "p6")} for i in (1, 2)}
    return figures.box_plots(panels, list(names), "Dice")


def bars(names=("a", "b")) -> Figure:
    found = {"none": Bar(5, 4, 6), "shuffled": Bar(-1, -2, 0.5, False), "size": Bar(0, None, None, False)}
    return figures.bars({"busi, p6": dict.fromkeys(names, found)}, list(names), "drop")


def dots(names=("a", "b")) -> Figure:
    found = {"busi": Bar(0.9, 0.8, 0.95), "isic": Bar(0.5, None, None, False)}
    return figures.dots({"pool": dict.fromkeys(names, found)}, list(names), "Dice")


def lines(names=("a", "b")) -> Figure:
    points = np.stack([np.arange(300.0), np.linspace(0, 1, 300)], axis=1)
    panels = {"loss": dict.fromkeys(names, points), "Dice": {names[0]: points[:1]}}
    return figures.lines(panels, list(names), ["step", "step"], ["loss", "Dice"], diagonal="Dice")


CHARTS = [boxes, bars, dots, lines]


@pytest.mark.parametrize("chart", CHARTS)
def test_the_same_numbers_give_the_same_bytes(chart, tmp_path):
    for name in ("first", "second"):
        figures.write_figure(tmp_path / name, "chart", chart())
    for ending in ("pdf", "png"):
        first, second = ((tmp_path / name / f"chart.{ending}").read_bytes() for name in ("first", "second"))
        assert first == second
    assert figures.to_svg(chart()) == figures.to_svg(chart())
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == ["chart.pdf", "chart.png"]


@pytest.mark.parametrize("chart", CHARTS)
def test_any_name_is_drawn_as_it_is(chart):
    assert figures.to_svg(chart(NAMES)).startswith(b"<?xml")


def test_pdf_fonts_are_embedded_and_are_no_type_3(tmp_path):
    figures.write_figure(tmp_path, "chart", bars())
    content = (tmp_path / "chart.pdf").read_bytes()
    assert b"/FontFile2" in content
    assert b"/Type3" not in content


def test_figures_have_the_sizes_of_a_page(tmp_path):
    assert bars().get_figwidth() == 3.3
    assert boxes().get_figwidth() == 6.9
    figures.write_figure(tmp_path, "chart", bars())
    with Image.open(tmp_path / "chart.png") as picture:
        assert picture.width == pytest.approx(3.3 * 300, abs=1)


def test_a_file_name_suits_latex(tmp_path):
    figures.write_figure(tmp_path, "calibration-my set%/a+b_c", bars())
    assert {path.name for path in tmp_path.iterdir()} == {
        "calibration-my-set-a+b_c.pdf",
        "calibration-my-set-a+b_c.png",
    }


def test_a_box_plot_of_many_records_stays_small():
    sizes = [len(figures.to_svg(boxes(n=n))) for n in (30, 30_000)]
    assert sizes[1] < 1.2 * sizes[0]


def test_series_differ_without_colour():
    looks = {(figures.hatch(i), figures.colour(i)) for i in range(42)}
    assert len(looks) == 42
    assert len({figures.hatch(i) for i in range(6)}) == 6
    assert len({figures.marker(i) for i in range(figures.MAX_SERIES)}) == figures.MAX_SERIES


def test_a_series_looks_the_same_in_every_figure():
    found = {"none": Bar(5, 4, 6)}
    alone = figures.bars({"busi": {"b": found}}, ["a", "b"], "drop")
    both = figures.bars({"busi": {"a": found, "b": found}}, ["a", "b"], "drop")
    assert alone.axes[0].patches[0].get_facecolor() == both.axes[0].patches[1].get_facecolor()


def test_a_mean_without_an_interval_has_no_whisker():
    assert figures.errors(Bar(0.5, None, 0.7)) is None
    np.testing.assert_allclose(figures.errors(Bar(0.5, 0.4, 0.7)), [[0.1], [0.2]])


def test_marked_bars_are_full_and_have_an_asterisk():
    ax = bars(["a"]).axes[0]
    assert [text.get_text() for text in ax.texts] == ["*"]
    assert [patch.get_facecolor() == (1, 1, 1, 1) for patch in ax.patches] == [False, True, True]


def test_many_panels_are_parted_into_figures_that_fit_on_a_page():
    parts = dict(figures.split_panels({f"set {i}": i for i in range(13)}))
    assert list(parts) == ["-1", "-2", "-3"]
    assert [name for part in parts.values() for name in part] == [f"set {i}" for i in range(13)]
    assert list(dict(figures.split_panels({"one": 1}))) == [""]


def test_the_users_settings_are_neither_used_nor_changed(monkeypatch):
    expected = figures.to_svg(bars())
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30)
    assert figures.to_svg(bars()) == expected
    assert matplotlib.rcParams["font.size"] == 30


def test_threads_draw_beside_each_other():
    expected, found = figures.to_svg(bars()), []
    threads = [threading.Thread(target=lambda: found.append(figures.to_svg(bars()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


@pytest.mark.parametrize(("text", "short"), [("p6", "p6"), ("a\nb", "a b"), ("x" * 50, "x" * 39 + "…")])
def test_long_names_are_cut(text, short):
    assert figures.shorten(text) == short
    assert re.fullmatch(r".{1,40}", figures.shorten(text))
