"""What a run asks of its records: findings are errors, skipped or printed in few lines, one dataset or a whole pool."""

import csv
import dataclasses
import json
import shutil

import pytest
from checked_records import cut, make_record, noise, with_mask
from PIL import Image

from medvlsm_jax.data.findings import Finding, findings_rows, findings_table
from medvlsm_jax.data.integrity import inspect_dataset, verify
from medvlsm_jax.errors import UserError


def error_of(*args, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        verify(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_errors_stop_with_one_line_that_says_how_to_see_them_all(records, tmp_path):
    report = tmp_path / "new" / "findings.csv"
    for record in records[1:]:
        cut(record.image)
    message = error_of(records, report=report)
    assert message.startswith(f"{records[1].image} cannot be decoded as an image")
    hint = "--config.data.on_bad=skip leaves such records out; tools/prepare_data.py --verify lists everything"
    assert message.endswith(f"; 2 more errors ({hint})")
    assert not report.parent.exists()


@pytest.mark.parametrize(("count", "text"), [(1, "remove it (--config"), (2, "remove it; 1 more error (--config")])
def test_the_line_counts_the_other_errors(records, count, text):
    for record in records[:count]:
        cut(record.image)
    assert text in error_of(records)


def test_bad_records_are_skipped_counted_and_listed(records, tmp_path, capsys):
    report = tmp_path / "findings.csv"
    cut(records[1].image)
    records[2] = dataclasses.replace(records[2], image=records[1].image)
    records[3] = with_mask(records[3], Image.new("L", (3, 3)))
    assert verify(records, on_bad="skip", report=report) == records[:1]
    printed = capsys.readouterr().out
    assert f"skipped 3 of 4 records with errors, see {report}" in printed
    assert f"mine: {records[1].image} cannot be decoded" in printed
    assert f"mine: {records[3].mask} is 3x3 pixels" in printed
    rows = list(csv.DictReader(report.read_text("utf-8").splitlines()))
    assert [(row["file"], row["records"]) for row in rows] == [
        (str(records[1].image), "2"),
        (str(records[3].mask), "1"),
    ]
    assert {(row["level"], row["dataset"]) for row in rows} == {("error", "mine")}
    assert rows[0]["finding"].startswith("cannot be decoded as an image")


def test_records_without_the_prompt_are_skipped(tmp_path):
    records = [make_record(tmp_path, 0), make_record(tmp_path, 1, prompts={"p0": ""}), make_record(tmp_path, 2)]
    assert "has no prompt 'p1'" in error_of(records, "p1")
    assert verify(records, "p1", on_bad="skip") == [records[0], records[2]]
    assert verify(records, "p0") == records


def test_when_no_record_is_left_that_is_an_error(records):
    for record in records:
        cut(record.mask)
    message = error_of(records, on_bad="skip")
    assert message.startswith(f"{records[0].mask} cannot be decoded")
    assert message.endswith("; 3 more errors (no record is left; tools/prepare_data.py --verify lists everything)")


@pytest.mark.parametrize("on_bad", ["ignore", "", "warning"])
def test_another_word_for_on_bad_lists_the_choices(records, on_bad):
    assert error_of(records, on_bad=on_bad) == f"--config.data.on_bad={on_bad}: choose error or skip"


def test_warnings_are_printed_in_few_lines_and_stop_nothing(tmp_path, capsys):
    records = [make_record(tmp_path, i) for i in range(30)]
    for record in records:
        Image.fromarray(noise(20, 30, 4)).save(record.image)
    assert verify(records) == records
    assert capsys.readouterr().out == (
        f"30 warnings\n  mine: {records[0].image} and 29 more: has an alpha channel: it is dropped\n"
    )


def test_a_report_without_findings_replaces_an_old_one(records, tmp_path):
    report = tmp_path / "findings.csv"
    report.write_text("old")
    verify(records, report=report)
    assert report.read_text() == "level,dataset,file,records,finding\n"


# --- Tables -----------------------------------------------------------------------------------------------------------


def finding(level: str = "error", text: str = "is bad", file: str = "a.png") -> Finding:
    return Finding(level, "mine", file, text, (0,))


def test_a_table_has_errors_and_warnings_apart():
    findings = [finding("warning"), finding(), finding(file="b.png"), *2 * [finding(file="", text="has no prompt")]]
    assert findings_table(findings).splitlines() == [
        "4 errors",
        "  mine: a.png and 1 more: is bad",
        "  mine (2 times): has no prompt",
        "1 warning",
        "  mine: a.png is bad",
    ]
    rows = findings_rows(findings)
    assert rows[0] == ["level", "dataset", "file", "records", "finding"]
    assert [row[0] for row in rows[1:]] == ["error", "error", "error", "error", "warning"]


def test_a_table_of_nothing_says_so():
    assert findings_table([]) == "no errors, no warnings"


def test_a_long_table_is_cut_and_says_by_how_much():
    lines = findings_table([finding(text=f"is bad {i}") for i in range(50)]).splitlines()
    assert (len(lines), lines[0], lines[-1]) == (22, "50 errors", "  … and 30 lines more")


# --- A whole dataset --------------------------------------------------------------------------------------------------


def test_all_splits_of_a_dataset_are_checked_and_what_they_share_is_named(sample, tmp_path):
    shutil.copytree(sample / "sample", tmp_path / "sample")
    anns = tmp_path / "sample" / "anns"
    entries = {split: json.loads((anns / f"{split}.json").read_text()) for split in ("train", "val")}
    (anns / "val.json").write_text(json.dumps([*entries["val"], entries["train"][0]]))
    bad = tmp_path / "sample" / "masks" / entries["train"][1]["mask_name"]
    bad.write_bytes(b"")
    (error, leak), copies = inspect_dataset(tmp_path, "sample", "p6")
    assert copies == []
    assert (error.level, error.file) == ("error", str(bad))
    assert (leak.level, leak.file) == ("warning", str(tmp_path / "sample" / "images" / entries["train"][0]["img_name"]))
    assert leak.text.startswith("is in the split val and in train as well")


def test_a_dataset_without_records_is_an_error(tmp_path):
    (tmp_path / "mine" / "anns").mkdir(parents=True)
    with pytest.raises(UserError, match=r"mine: no annotation file in .* has records"):
        inspect_dataset(tmp_path, "mine")
