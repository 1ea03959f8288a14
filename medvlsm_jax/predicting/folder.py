"""The folder that predictions go to: what they are called, and what a run that was interrupted had done."""

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medvlsm_jax import atomic
from medvlsm_jax.data.reading.entries import stamp
from medvlsm_jax.data.scans.scan import Scan
from medvlsm_jax.evaluation.file_names import unique_names
from medvlsm_jax.predicting.outputs import Output
from medvlsm_jax.written import Written, read_lines

DONE = ".predictions.jsonl"  # what was asked, and then a line for each scan that is done


class PredictionFolder:
    """Where predictions are written, and which of them are there already.

    Attributes:
        asked: all that a prediction depends on besides the image.
        outputs: of each scan.
        written: the record of what programs of ours wrote here.
    """

    def __init__(self, folder: Path, scans: Sequence[Scan], prompts: Sequence[str | None], *, save_json: bool):
        """Raises a UserError when the folder holds files of others under the names of what is to be written."""
        self.folder, self.written = folder, Written("--output", folder)
        self._lock = threading.Lock()
        self.asked: Any = None
        names = output_names([scan.path for scan in scans])
        self.outputs = [
            Output(scan, name, prompts, save_json=save_json) for scan, name in zip(scans, names, strict=True)
        ]
        self.written.check(file for output in self.outputs for file in output.files)

    def left(self, asked: Mapping[str, Any]) -> list[Output]:
        """What has still to be done; what is there from another model, sentence or option is made anew.

        Args:
            asked: as of the class.
        """
        self.asked = json.loads(json.dumps(asked))
        first, *lines = read_lines(self.folder / DONE) or [{}]
        if first != self.asked:
            (self.folder / DONE).unlink(missing_ok=True)
            return self.outputs
        done = {json.dumps(line["inputs"]): set(line["files"]) for line in lines}

        def is_done(output: Output) -> bool:
            files = done.get(json.dumps(stamps(output.scan)), set())
            return files == set(output.files) and all((self.folder / name).is_file() for name in files)

        return [output for output in self.outputs if not is_done(output)]

    def finish(self, output: Output) -> None:
        """Notes that all files of a scan are in their places; may be called in threads."""
        line = json.dumps({"inputs": stamps(output.scan), "files": output.files})
        with self._lock:
            if not (self.folder / DONE).exists():
                atomic.write_text(self.folder / DONE, json.dumps(self.asked) + "\n")
            with (self.folder / DONE).open("a", encoding="utf-8") as file:
                file.write(line + "\n")


def stamps(scan: Scan) -> list[list[Any]]:
    """Of each file of a scan what its predictions depend on."""
    return [list(stamp(path.absolute())) for path in scan.files]


def output_names(paths: Sequence[Path]) -> list[str]:
    """What the outputs of each scan are called: its stem, or its whole name if any two share a stem.

    Scans of the same name, in several folders, are told apart by these.
    """
    stems = [stem_of(path) for path in paths]
    is_shared = len(set(stems)) < len(set(paths))
    names = [path.name if is_shared else stem for path, stem in zip(paths, stems, strict=True)]
    return unique_names(names, [f"{path.parent.name}_{path.name}" for path in paths])


def stem_of(path: Path) -> str:
    """A file's name without its ending; `.nii.gz` is one."""
    return path.name[: -len(".nii.gz")] if path.name.lower().endswith(".nii.gz") else path.stem
