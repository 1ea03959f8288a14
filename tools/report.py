r"""Makes the paper's tables and figures of finished evaluations.

    python tools/report.py RUNS [RUNS …] --output=DIR

Every folder with an evaluation.json below RUNS is taken. Writes DIR/report.html, one page that needs nothing but
itself; DIR/tables with CSV and LaTeX; DIR/figures with PDF and PNG for print. What an older report has written there
is replaced or removed, and nothing else.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from tqdm import tqdm

from medvlsm_jax import atomic
from medvlsm_jax.command_line import run_program
from medvlsm_jax.data.cards import CARDS, split_members
from medvlsm_jax.errors import UserError
from medvlsm_jax.evaluation.file_names import unique_names
from medvlsm_jax.folders import local_folder, output_folder
from medvlsm_jax.lease import holding
from medvlsm_jax.reporting.comparison import collect_results
from medvlsm_jax.reporting.evaluations import Evaluation, Problem, find_evaluations
from medvlsm_jax.reporting.figures import file_stem, write_figure
from medvlsm_jax.reporting.page import Plate, count, document
from medvlsm_jax.reporting.sections import make_sections
from medvlsm_jax.reporting.tables import write_tables
from medvlsm_jax.written import Written


def training_datasets(dataset: str) -> list[str]:
    """The single datasets that a dataset or pool trains on."""
    return [card.name for card in split_members(dataset, "train")]


def classes_by_dataset(evaluations: Sequence[Evaluation]) -> dict[str, tuple[str, ...]]:
    """The classes that the cards of the package, and those that runs were trained on, name."""
    cards = list(CARDS.values())
    for dataset in {one.training["dataset"] for one in evaluations if one.domain}:  # whose card is there
        cards += split_members(dataset, "train")
    return {card.name: card.targets for card in cards}


def write_report(roots: Sequence[str | Path], output: str | Path, title: str = "Evaluation report") -> Path:
    """Writes the page, tables and figures of all evaluations below some folders.

    Args:
        roots: folders of runs or evaluations.
        output: receives report.html, tables/ and figures/.
        title: of the page.

    Returns:
        The path of the page.

    Raises:
        UserError: a folder does not exist, or holds no finished evaluation; or `output` is a file, in use, or holds
            files of others under the names of the report's.
    """
    output = output_folder("--output", output)
    evaluations, problems = find_evaluations([local_folder("RUNS", root) for root in roots], training_datasets)
    with holding("--output", output):
        record = Written("--output", output)
        with record.adding() as staged:
            written = write_files(staged, evaluations, problems, title)
        record.remove_others({output / path.relative_to(staged) for path in written})
    for problem in problems:
        print(f"left out: {problem.name}: {problem.reason}")
    return output / "report.html"


def write_files(folder: Path, evaluations: Sequence[Evaluation], problems: Sequence[Problem], title: str) -> set[Path]:
    """Writes all files of a report into an empty folder, and returns their paths."""
    results = collect_results(evaluations, classes_by_dataset(evaluations))
    written = write_tables(folder / "tables", evaluations, results)
    sections = make_sections(evaluations, results, problems)
    plates = [part for section in sections for part in section.body if isinstance(part, Plate)]
    stems = [file_stem(plate.name) for plate in plates]
    for plate, stem in tqdm(list(zip(plates, unique_names(stems, stems), strict=True)), desc="figures", disable=None):
        written |= write_figure(folder / "figures", stem, plate.figure)
    networks, datasets = (len({getattr(one, name) for one in results}) for name in ("network", "dataset"))
    counts = {"evaluation": len(evaluations), "network": networks, "test dataset": datasets}
    subtitle = ", ".join(count(number, thing) for thing, number in counts.items())
    atomic.write_text(folder / "report.html", document(title, subtitle, sections))
    return written | {folder / "report.html"}


def main(argv: list[str]) -> None:
    """Runs the command line."""
    args = flags.FLAGS
    if not argv[1:]:
        raise UserError("give the folders of runs: python tools/report.py RUNS --output=DIR")
    print(f"written to {write_report(argv[1:], args.output, args.title)}")


if __name__ == "__main__":
    flags.DEFINE_string("output", None, "Receives report.html, tables/ and figures/.")
    flags.DEFINE_string("title", "Evaluation report", "Of the page.")
    flags.mark_flags_as_required(["output"])
    run_program(main, arguments="folders of runs or evaluations")
