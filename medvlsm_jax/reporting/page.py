"""Pages that need nothing but themselves: no script, no font, no picture from elsewhere."""

import base64
import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # matplotlib takes half a second, which who only wants numbers need not wait
    from matplotlib.figure import Figure

REM_PER_INCH = 9.0  # of figures
MAX_OPEN = 30  # lines of a table that is not folded

STYLE = """
:root { color-scheme: light; --ink: #222; --quiet: #666; --rule: #d8d8d8; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2.5rem 1.5rem 5rem; color: var(--ink); background: #fff;
  font: 15px/1.55 "Source Sans 3", "Helvetica Neue", Arial, "Liberation Sans", sans-serif; }
h1, h2, h3 { font-family: Charter, "Source Serif 4", Georgia, "Liberation Serif", serif; line-height: 1.25; }
h1 { font-size: 1.9rem; margin: 0 0 .3rem; font-weight: 600; }
h2 { font-size: 1.35rem; margin: 3rem 0 .5rem; font-weight: 600; }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .4rem; font-weight: 600; }
p { max-width: 46rem; margin: .5rem 0; }
.subtitle, .definition, nav, small, figcaption, .caption, summary { color: var(--quiet); }
nav { border-block: 1px solid var(--rule); padding: .7rem 0; margin: 1.2rem 0 0; font-size: .93rem; }
nav ol { margin: 0; padding-left: 1.4rem; columns: 2; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
figure { margin: 1.2rem 0 1.8rem; }
figure > img { display: block; height: auto; max-width: 100%; }
figcaption, .caption, summary { font-size: .88rem; text-align: left; }
figcaption, summary { max-width: 46rem; }
.caption { margin: 1.2rem 0 .4rem; }
body { counter-reset: figure table; }
figcaption::before { counter-increment: figure; content: "Figure " counter(figure) ". "; font-weight: 600;
  color: var(--ink); }
.caption::before, summary::before { counter-increment: table; content: "Table " counter(table) ". "; font-weight: 600;
  color: var(--ink); }
.table { overflow-x: auto; margin: 0 0 1.8rem; }
table { border-collapse: collapse; font-size: .87rem; line-height: 1.35; font-variant-numeric: tabular-nums;
  border-bottom: 1.5px solid var(--ink); }
thead th { border-top: 1.5px solid var(--ink); border-bottom: 1px solid var(--ink); font-weight: 600;
  vertical-align: bottom; }
th, td { padding: .3rem .55rem; text-align: right; vertical-align: top; }
th.text, td.text { text-align: left; }
th:first-child, td:first-child { padding-left: .2rem; }
td.text { min-width: 5rem; }
details { margin: 1.2rem 0 1.8rem; } summary { cursor: pointer; list-style: none; padding-bottom: .4rem; }
summary b { color: var(--accent); font-weight: 400; }
[open] > summary b { display: none; } details .table { margin: 0; }
tr.first td { border-top: 1px solid var(--rule); } tbody tr.first:first-child td { border-top: 0; }
td small, th small { display: block; white-space: nowrap; font-size: .8em; font-weight: 400; }
td .paper { display: block; white-space: nowrap; color: #9a4700; font-style: italic; }
.cases { display: grid; grid-template-columns: repeat(3, 1fr); gap: .9rem; margin: .8rem 0; }
.cases img { width: 100%; height: auto; border: 1px solid var(--rule); }
.finding { border-left: 3px solid var(--accent); padding: .1rem 0 .1rem .9rem; }
code { font-size: .9em; }
@media (max-width: 40rem) { nav ol { columns: 1; } .cases { grid-template-columns: 1fr; } }
@media print { @page { margin: 15mm; } body { max-width: none; padding: 0; font-size: 10pt; }
  details::details-content { content-visibility: visible; } summary b { display: none; }
  h2, h3, .caption { break-after: avoid; } figure, tr { break-inside: avoid; } a { color: inherit; }
  .table { overflow: visible; } table { font-size: 7.5pt; } th, td { padding: 1.5pt 3pt; } }
""".strip()


class Html(str):
    """Text that is HTML already; all other text is escaped."""


class Plate(NamedTuple):
    """A figure of a page, which is also written as a file of that name."""

    name: str
    figure: "Figure"
    caption: str


class Section(NamedTuple):
    """A part of a page: what it shows in one sentence, then tables, figures and text."""

    title: str
    definition: str
    body: Sequence[Html | Plate]


# --- Parts of a page -------------------------------------------------------------------------------------------------


def count(number: int, thing: str) -> str:
    """1 run, 2 runs."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def escape(text: object) -> Html:
    """Text as HTML."""
    return text if isinstance(text, Html) else Html(html.escape(str(text)))


def paragraph(text: str, kind: str = "") -> Html:
    """A paragraph of a style."""
    return Html(f"<p{f' class={kind}' if kind else ''}>{escape(text)}</p>")


def heading(text: str) -> Html:
    """A title within a section."""
    return Html(f"<h3>{escape(text)}</h3>")


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], caption: str, *, text_columns: int = 1, is_text: bool = False
) -> Html:
    """A table that scrolls in its own box, and is folded if it is long; a first cell that is not empty starts a group.

    Args:
        header: of the columns.
        rows: of cells.
        caption: above the table.
        text_columns: so many columns from the left hold text, the others numbers.
        is_text: all columns hold text.
    """
    rows = list(rows)
    text_columns = len(header) if is_text else text_columns
    head, *body = (table_line(row, "td" if i else "th", text_columns) for i, row in enumerate([header, *rows]))
    is_folded = len(rows) > MAX_OPEN
    lines = "\n".join(body)
    found = f'<div class="table"><table>\n<thead>{head}</thead>\n<tbody>\n{lines}\n</tbody></table></div>'
    summary = f"<summary>{escape(caption)} <b>Show {len(rows)} lines</b></summary>"
    return Html(
        f"<details>{summary}{found}</details>" if is_folded else f'<p class="caption">{escape(caption)}</p>{found}'
    )


def table_line(cells: Sequence[str], tag: str, text_columns: int) -> str:
    """A line of a table."""
    sides = [' class="text"' if i < text_columns else "" for i in range(len(cells))]
    inner = "".join(f"<{tag}{side}>{escape(one)}</{tag}>" for side, one in zip(sides, cells, strict=True))
    return f"<tr{' class=first' if cells[0] else ''}>{inner}</tr>"


def cell(text: str, *below: str, is_best: bool = False) -> Html:
    """A cell with smaller lines below its number; the best of its kind is bold."""
    lines = "".join(f"<small>{escape(line)}</small>" for line in below if line)
    return Html(f"{f'<b>{escape(text)}</b>' if is_best else escape(text)}{lines}")


def image(content: bytes, kind: str, description: str, width: float = 0) -> Html:
    """A picture within the page; `kind` is svg+xml, jpeg or png, and a width is in rem."""
    data = base64.b64encode(content).decode("ascii")
    style = f' style="width:{width:.1f}rem"' if width else ""
    return Html(f'<img src="data:image/{kind};base64,{data}" alt="{escape(description)}"{style}>')


def plate(one: Plate) -> Html:
    """A figure with its caption."""
    from medvlsm_jax.reporting.figures import to_svg

    picture = image(to_svg(one.figure), "svg+xml", one.caption, width=REM_PER_INCH * one.figure.get_figwidth())
    return Html(f"<figure>{picture}<figcaption>{escape(one.caption)}</figcaption></figure>")


def document(title: str, subtitle: str, sections: Sequence[Section], introduction: Sequence[Html] = ()) -> str:
    """A whole page; what it may load is nothing, and it says so to the browser."""
    contents = "".join(f'<li><a href="#s{i}">{escape(one.title)}</a></li>' for i, one in enumerate(sections, 1))
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}\n</style></head>\n<body>",
        f'<h1>{escape(title)}</h1>\n<p class="subtitle">{escape(subtitle)}</p>',
        *introduction,
        *([f"<nav><ol>{contents}</ol></nav>"] if len(sections) > 1 else []),
    ]
    for i, one in enumerate(sections, 1):
        number = f"{i} " if len(sections) > 1 else ""
        parts += [f'<section id="s{i}"><h2>{number}{escape(one.title)}</h2>', paragraph(one.definition, "definition")]
        parts += [plate(part) if isinstance(part, Plate) else part for part in one.body]
        parts.append("</section>")
    return "\n".join([*parts, "</body></html>"]) + "\n"


# --- Which attributes a model reacts to ------------------------------------------------------------------------------
