"""Checks of images, masks and prompts before any work starts."""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medvlsm_jax import atomic
from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.apart import find_leaked, find_shared_groups, named_groups
from medvlsm_jax.data.cards import SPLITS
from medvlsm_jax.data.facts import ALPHA_PICTURE, Facts, Key, default_cache, read_facts
from medvlsm_jax.data.findings import ERROR, WARNING, Finding, counted, findings_rows, findings_table
from medvlsm_jax.data.images import DEEP_MODES, TURNED, check_sizes
from medvlsm_jax.data.language.prompts import check_prompt
from medvlsm_jax.data.loading import load_records
from medvlsm_jax.data.near_copies import NearCopy, find_near_copies
from medvlsm_jax.data.suspicious import by_dataset, find_meaningless, find_unknown_classes
from medvlsm_jax.errors import UserError

SKIP = "skip"

MASK_VALUES = {
    "grey": "holds grey values: what is above 127 counts as the object",
    "faint": "holds values, but none above 127: it is read as empty; the object should be 255",
    "labels": "holds more than two values, as a label map: what is above 127 counts as one object, all else as none",
}
MASK_ERRORS = {
    "alpha": "has its object in its alpha channel, not in its colours: it is read as empty; the object should be 255",
    "colour": "has its object in another channel than the first: it is read as empty; the object should be 255",
}
LIE_ALIKE = ": check that image and mask lie alike"  # after TURNED
DUPLICATE = "is listed twice with the same mask: drop one of the records"
COLONDB_COPY = (
    "the annotations are a copy of CVC-ColonDB's, whose sentences describe other images (so they were published): "
    "generate its own with tools/make_prompts.py"
)
# Of the sorted stems of the image names in ColonDB's published train.json and test.json, one a line.
COLONDB_DIGESTS = (
    "f8b3eb1df2f4867a257915154712053a50f8790959dba9bfe84360fc46a767ed",
    "db28c9e80541727a751a6100e9ea4c8aada54b2fea64e07e482d59579cf3cdb5",
)


Check = Callable[[Sequence[Record], Mapping[Key, Facts]], Iterable[Finding]]

# --- What a run asks for ----------------------------------------------------------------------------------------------


def verify(
    records: Sequence[Record],
    *prompts: str,
    on_bad: str = ERROR,
    cache: Path | None = None,
    report: Path | None = None,
    is_shown: bool = True,
    checks: Sequence[Check] = (),
) -> list[Record]:
    """The records that can be used, after warnings were printed.

    Args:
        records: of one split, of one dataset or several.
        prompts: prompt types that every record must have.
        on_bad: `error` stops at the first error, `skip` leaves out the records with errors and says how many.
        cache: a json file that remembers what was found; made when missing.
        report: a csv file that receives the findings, if there are any and the run goes on.
        is_shown: whether to print them: of processes that compute together one does.
        checks: further ones, of the whole list.

    Raises:
        UserError: there are errors and `on_bad` is `error`, no record is left, or `on_bad` is another word.
    """
    if on_bad not in (ERROR, SKIP):
        raise UserError(f"--config.data.on_bad={on_bad}: choose {ERROR} or {SKIP}")
    facts = read_facts(records, cache)
    findings = inspect_records(records, *prompts, facts=facts)
    findings = in_order([*findings, *(found for check in checks for found in check(records, facts))])
    errors = [finding for finding in findings if finding.level == ERROR]
    bad = {index for error in errors for index in error.indices}
    if errors and (on_bad == ERROR or len(bad) == len(records)):
        more = f"; {counted(len(errors) - 1, 'more error')}" if len(errors) > 1 else ""
        hint = "--config.data.on_bad=skip leaves such records out" if on_bad == ERROR else "no record is left"
        raise UserError(f"{errors[0]}{more} ({hint}; tools/prepare_data.py --verify lists everything)")
    if findings and is_shown:
        print(findings_table(findings))
    if report is not None and (findings or report.exists()):
        atomic.write_csv(report, findings_rows(findings))
    if errors and is_shown:
        listed = "" if report is None else f", see {report}"
        print(f"skipped {len(bad)} of {len(records)} records with errors{listed}")
    return [record for i, record in enumerate(records) if i not in bad]


def inspect_dataset(data_dir: str | Path, dataset: str, *prompts: str) -> tuple[list[Finding], list[NearCopy]]:
    """All that is wrong with a dataset or a pool: in each of its splits, and between them; and what looks alike there.

    Raises:
        UserError: an annotation file is broken, or none has records.
    """
    splits = {split: load_records(data_dir, dataset, split, is_required=False) for split in SPLITS}
    if not any(splits.values()):
        raise UserError(f"{dataset}: no annotation file in {data_dir} has records")
    together = list(itertools.chain(*splits.values()))
    facts = read_facts(together, default_cache(data_dir))
    groups = {split: named_groups(records) for split, records in splits.items()}
    found = [
        *(inspect_records(records, *prompts, facts=facts) for records in splits.values()),
        find_meaningless(together, facts),
        *(find_shared_groups(records, split, groups) for split, records in splits.items()),
        find_leaked(splits),
    ]
    copies = find_near_copies(splits, facts)
    return in_order([*itertools.chain(*found), *(copy.finding for copy in copies)]), copies


def inspect_records(
    records: Sequence[Record],
    *prompts: str,
    facts: Mapping[Key, Facts] | None = None,
    cache: Path | None = None,
    workers: int | None = None,
) -> list[Finding]:
    """All that is wrong with a list of records, errors before warnings, else in the order of the records.

    Args:
        records: of one split, of one dataset or several.
        prompts: prompt types that every record must have.
        facts: of their files, where they are known.
        cache: else a json file that remembers what was found about each file; made when missing.
        workers: threads that decode; by default a few more than there are cores.
    """
    users: dict[Key, list[int]] = {}
    for i, record in enumerate(records):
        users.setdefault((str(record.image), False), []).append(i)
        users.setdefault((str(record.mask), True), []).append(i)
    facts = read_facts(records, cache, workers) if facts is None else facts
    found = [
        Finding(level, records[indices[0]].dataset, name, text, tuple(indices))
        for (name, is_mask), indices in users.items()
        for level, text in findings_of(facts[name, is_mask], is_mask)
    ]
    found += [*find_mismatches(records, facts), *find_repeated(records)]
    found += [*find_copied(records), *(lack for prompt in prompts for lack in find_unprompted(records, prompt))]
    return in_order([*found, *find_unknown_classes(records)])


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Errors before warnings, else as they are."""
    return sorted(findings, key=lambda finding: finding.level)  # "error" comes before "warning"


# --- Findings ---------------------------------------------------------------------------------------------------------


def findings_of(facts: Facts, is_mask: bool) -> Iterator[tuple[str, str]]:
    """Levels and texts of what is wrong with one file."""
    if facts.error:
        yield ERROR, facts.error
        return
    if is_mask and facts.mode not in ("1", "L", *DEEP_MODES):
        yield WARNING, f"is of mode {facts.mode}, not of a single channel: its first channel counts"
    if facts.values in MASK_ERRORS:
        yield ERROR, MASK_ERRORS[facts.values]
    if facts.values in MASK_VALUES:
        yield WARNING, MASK_VALUES[facts.values]
    for note in (*facts.notes, *((TURNED,) if is_mask and facts.is_turned else ())):
        yield ERROR if note == ALPHA_PICTURE else WARNING, note + LIE_ALIKE if note == TURNED else note


def find_mismatches(records: Sequence[Record], facts: Mapping[Key, Facts]) -> Iterator[Finding]:
    """Masks that differ from their image in size."""
    for i, record in enumerate(records):
        image, mask = facts[str(record.image), False], facts[str(record.mask), True]
        if image.error or mask.error:
            continue
        try:
            check_sizes(record.image, image, record.mask, mask)
        except UserError as error:
            text = str(error).removeprefix(f"{record.mask} ")
            yield Finding(ERROR, record.dataset, str(record.mask), text, (i,))


def find_unprompted(records: Sequence[Record], prompt: str) -> Iterator[Finding]:
    """Datasets with records that lack the prompt type."""
    for dataset, indices in by_dataset(records).items():
        if not (message := prompt_error([records[i] for i in indices], prompt)):
            continue
        lacking = tuple(i for i in indices if prompt_error([records[i]], prompt)) or tuple(indices)
        text = f"{message.removeprefix(f'{dataset}: ')} ({len(lacking)} of {len(indices)} records)"
        yield Finding(ERROR, dataset, "", text, lacking)


def prompt_error(records: list[Record], prompt: str) -> str:
    """What `check_prompt` says against records; empty if nothing."""
    try:
        check_prompt(records, prompt)
    except UserError as error:
        return str(error)
    return ""


def find_repeated(records: Sequence[Record]) -> Iterator[Finding]:
    """Records listed twice."""
    seen: set[tuple[str, str]] = set()
    for i, record in enumerate(records):
        image, mask = str(record.image), str(record.mask)
        if (image, mask) in seen:
            yield Finding(WARNING, record.dataset, image, DUPLICATE, (i,))
        seen.add((image, mask))


def find_copied(records: Sequence[Record]) -> Iterator[Finding]:
    """CVC-300 with the annotations of ColonDB."""
    indices = by_dataset(records).get("cvc300_polyp", [])
    if is_colondb_copy({"img_name": records[i].image.name} for i in indices):
        yield Finding(WARNING, "cvc300_polyp", "", COLONDB_COPY, tuple(indices))


def is_colondb_copy(entries: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a split's entries, as in its json file, name the very images of CVC-ColonDB's published split.

    The files published for CVC-300 do: they are ColonDB's, byte for byte (see COLONDB_DIGESTS).
    """
    stems = sorted(Path(str(entry.get("img_name"))).stem for entry in entries)
    return hashlib.sha256("\n".join(stems).encode()).hexdigest() in COLONDB_DIGESTS
