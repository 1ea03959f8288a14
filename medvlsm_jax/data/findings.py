"""What is found wrong with images, masks and records, and how it is shown."""

import dataclasses
from collections.abc import Sequence

ERROR, WARNING = "error", "warning"
MAX_LINES = 20  # of a table, for errors and for warnings


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something wrong with a file, or with a dataset.

    Attributes:
        level: `error` or `warning`.
        dataset: its name.
        file: the file; empty where the finding is about the whole dataset.
        text: what is wrong and what to do.
        indices: of the records that it concerns.
    """

    level: str
    dataset: str
    file: str
    text: str
    indices: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.file or self.dataset + ':'} {self.text}"


def findings_table(findings: Sequence[Finding]) -> str:
    """Text for the terminal: errors, then warnings, with their counts; equal ones of a dataset share a line."""
    lines = []
    for level in (ERROR, WARNING):
        groups: dict[tuple[str, str], list[Finding]] = {}
        for finding in findings:
            if finding.level == level:
                groups.setdefault((finding.dataset, finding.text), []).append(finding)
        if count := sum(map(len, groups.values())):
            lines.append(counted(count, level))
        lines += [group_line(group) for group in list(groups.values())[:MAX_LINES]]
        if len(groups) > MAX_LINES:
            lines.append(f"  … and {len(groups) - MAX_LINES} lines more")
    return "\n".join(lines or ["no errors, no warnings"])


def group_line(group: Sequence[Finding]) -> str:
    """One line for findings of one text: the first file and how many more, or how often it is said of a dataset."""
    first, count = group[0], len(group)
    if not first.file:
        return f"  {first.dataset}{f' ({count} times)' if count > 1 else ''}: {first.text}"
    more = f" and {count - 1} more:" if count > 1 else ""
    return f"  {first.dataset}: {first.file}{more} {first.text}"


def counted(count: int, noun: str) -> str:
    """A count and its noun."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def findings_rows(findings: Sequence[Finding]) -> list[list[str]]:
    """Every finding, under a header, errors first."""
    rows = [[f.level, f.dataset, f.file, str(len(f.indices)), f.text] for f in findings]
    return [["level", "dataset", "file", "records", "finding"], *sorted(rows, key=lambda row: row[0])]
