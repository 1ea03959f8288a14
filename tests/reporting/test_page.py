"""Pages that need nothing but themselves, and the one that says what a model reacts to."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import pytest

from medvlsm_jax.reporting.page import Section, cell, document, escape, paragraph, table
from medvlsm_jax.reporting.probe_page import probe_finding, write_probe_page

VOID = ("meta", "img", "br")


class Reader(HTMLParser):
    """Collects the text of a page; any tag that is not closed in its turn is an error."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def probe(drop: float, low: float | None, high: float | None, p: float) -> dict[str, Any]:
    counts = {"n": 90, "unchanged": 10, "clusters": 45, "dice": 0.8 - drop}
    return counts | {"drop": drop, "low": low, "high": high, "p": p, "p_holm": min(1.0, 2 * p)}


def found(**probes: dict[str, Any]) -> dict[str, Any]:
    use = {"mean": 0.05, "n": 90, "clusters": 45, "low": 0.03, "high": 0.07, "p": 0.0001}
    return {"dice": 0.8, "language_use": use, "probes": probes}


LOCATION = {"wrong_location": probe(0.1, 0.08, 0.12, 0.0001)}
SIZE = {"wrong_size": probe(0.001, -0.01, 0.02, 0.6)}


@pytest.mark.parametrize(
    ("probes", "text"),
    [
        (LOCATION | SIZE, "The model reacts to: wrong location; no reaction shown to: wrong size."),
        (SIZE, "No reaction shown to any change."),
        (
            {"none": probe(-0.1, -0.2, -0.05, 0.001)} | LOCATION,
            "The model reacts to: wrong location; better with: missing",
        ),
        ({"wrong_size": probe(0.02, 0.001, 0.04, 0.03)}, "No reaction shown"),  # p is 0.06 after Holm's correction
        ({"wrong_size": probe(0.02, -0.001, 0.04, 0.001)}, "No reaction shown"),  # the interval holds 0
        ({"wrong_size": probe(0.02, None, None, 0.001)}, "No reaction shown"),  # one patient alone
    ],
)
def test_a_reaction_needs_both_test_and_interval(probes, text):
    assert probe_finding(found(**probes)).startswith(text)


def test_the_probe_page_holds_finding_chart_and_numbers(tmp_path):
    path = tmp_path / "new" / "probe.html"
    write_probe_page(path, {"busi": {"p6": found(**LOCATION, **SIZE)}}, "runs/clipseg")
    text = path.read_text("utf-8")
    shown = "".join(Reader(text).texts)
    for expected in ("runs/clipseg", "busi, p6", "reacts to: wrong location", "+10.00", "[+8.00, +12.00]", "< 0.001"):
        assert expected in shown
    assert text.count("data:image/svg+xml;base64,") == 1


@pytest.mark.parametrize("probes", [{}, {"none": probe(0.0, None, None, 1.0)}])
def test_a_probe_without_language_use_still_has_a_page(tmp_path, probes):
    write_probe_page(tmp_path / "probe.html", {"busi": {"p0": found(**probes) | {"language_use": None}}}, "a")
    Reader((tmp_path / "probe.html").read_text("utf-8"))


def test_the_same_probes_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_probe_page(tmp_path / name, {"busi": {"p6": found(**LOCATION)}}, "a")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_page_loads_nothing(tmp_path):
    write_probe_page(tmp_path / "probe.html", {"busi": {"p6": found(**LOCATION)}}, "a")
    text = (tmp_path / "probe.html").read_text("utf-8")
    assert not re.search(r"https?:|<script|<link|@import|url\(", text)
    assert "default-src 'none'" in text


def test_names_and_sentences_are_escaped(tmp_path):
    evil = "<script>alert('x')</script> & \"q\""
    section = Section(evil, evil, [paragraph(evil), table([evil, "n"], [[evil, cell(evil, evil)]], evil)])
    text = document(evil, evil, [section, section])
    assert "<script>" not in text
    assert "".join(Reader(text).texts).count(evil) == 21
    write_probe_page(tmp_path / "probe.html", {evil: {f"text:{evil}": found(**LOCATION)}}, evil)
    assert "<script>" not in (tmp_path / "probe.html").read_text("utf-8")


def test_html_is_not_escaped_twice():
    assert escape(escape("a & b")) == "a &amp; b"
    assert cell("<", "&", is_best=True) == "<b>&lt;</b><small>&amp;</small>"


@pytest.mark.parametrize(("count", "is_folded"), [(30, False), (31, True)])
def test_a_long_table_is_folded_and_keeps_its_lines(count, is_folded):
    text = table(["name", "n"], [[str(i), "1"] for i in range(count)], "Caption")
    Reader(text)
    assert ("<details>" in text) == is_folded
    assert text.count("<tr") == count + 1
    assert text.count("Caption") == 1


def test_sections_are_numbered_and_listed_where_there_are_several():
    section = Section("One", "What it shows.", [])
    assert "<nav>" not in document("a", "b", [section])
    text = document("a", "b", [section, Section("Two", "", [])])
    assert '<a href="#s2">Two</a>' in text
    assert '<section id="s2"><h2>2 Two</h2>' in text


def test_a_page_without_charts_does_not_wait_for_matplotlib():
    code = "import sys, medvlsm_jax.reporting.page; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=600).returncode == 0
