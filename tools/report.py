r"""Makes the paper's tables and figures of finished evaluations.

    python tools/report.py RUNS [RUNS …] --output=DIR

Every folder with an evaluation.json below RUNS is taken. Writes DIR/report.html, one page that needs nothing but
itself; DIR/tables with CSV and LaTeX; DIR/figures with PDF and PNG for print. Files of these kinds that an older report
has left in these two folders are removed.
"""

from collections.abc import Sequence, Set
from pathlib import Path

from absl import flags
from tqdm import tqdm

from medvlsm_jax import atomic
from medvlsm_jax.command_line import run_program
from medvlsm_jax.data.cards import CARDS, split_members
from medvlsm_jax.errors import UserError
from medvlsm_jax.folders import local_folder, output_folder
from medvlsm_jax.reporting.comparison import collect_results
from medvlsm_jax.reporting.evaluations import Evaluation, find_evaluations
from medvlsm_jax.reporting.figures import write_figure
from medvlsm_jax.reporting.page import Plate, count, document
from medvlsm_jax.reporting.sections import make_sections
from medvlsm_jax.reporting.tables import write_tables


def training_datasets(dataset: str) -> list[str]:
    """The single datasets that a dataset or pool trains on."""
    return [card.name for card in split_members(dataset, "train")]


def classes_by_dataset(evaluations: Sequence[Evaluation]) -> dict[str, tuple[str, ...]]:
    """The classes that the cards of the package, and those that runs were trained on, name."""
    cards = list(CARDS.values())
    for dataset in {one.training["dataset"] for one in evaluations if one.domain}:  # whose card is there
        cards += split_members(dataset, "train")
    return {card.name: card.targets for card in cards}


def remove_old(output: Path, written: Set[Path]) -> None:
    """Removes the tables and figures of an older report in the same folder."""
    for folder, endings in (("tables", (".csv", ".tex")), ("figures", (".pdf", ".png"))):
        for path in (output / folder).glob("*"):
            if path.suffix in endings and path not in written:
                path.unlink()


def write_report(roots: Sequence[str | Path], output: str | Path, title: str = "Evaluation report") -> Path:
    """Writes the page, tables and figures of all evaluations below some folders.

    Args:
        roots: folders of runs or evaluations.
        output: receives report.html, tables/ and figures/.
        title: of the page.

    Returns:
        The path of the page.

    Raises:
        UserError: a folder does not exist, or holds no finished evaluation, or `output` is a file.
    """
    output = output_folder("--output", output)
    evaluations, problems = find_evaluations([local_folder("RUNS", root) for root in roots], training_datasets)
    results = collect_results(evaluations, classes_by_dataset(evaluations))
    written = write_tables(output / "tables", evaluations, results)
    sections = make_sections(evaluations, results, problems)
    plates = [part for section in sections for part in section.body if isinstance(part, Plate)]
    for plate in tqdm(plates, desc="figures", disable=None):
        written |= write_figure(output / "figures", plate.name, plate.figure)
    networks, datasets = (len({getattr(one, name) for one in results}) for name in ("network", "dataset"))
    counts = {"evaluation": len(evaluations), "network": networks, "test dataset": datasets}
    subtitle = ", ".join(count(number, thing) for thing, number in counts.items())
    atomic.write_text(output / "report.html", document(title, subtitle, sections))
    remove_old(output, written)
    for problem in problems:
        print(f"left out: {problem.name}: {problem.reason}")
    return output / "report.html"


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
