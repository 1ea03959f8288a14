"""What a run shows on the terminal."""

import sys
from collections.abc import Mapping

from tqdm import tqdm

SHOWN = {  # of what is logged at a step of training
    "train/loss": "loss {:.4g}",
    "train/learning_rate": "learning rate {:.3g}",
    "train/input_wait": "input wait {:.1%}",
    "train/mfu": "MFU {:.1%}",
}


class Progress:
    """A bar on a terminal; plain lines elsewhere, on the first process alone."""

    def __init__(self, total_steps: int, first_step: int, batch_size: int, *, is_shown: bool = True):
        on_terminal = sys.stderr.isatty()
        self.total_steps, self.batch_size = total_steps, batch_size
        self.bar = tqdm(
            total=total_steps * batch_size,
            initial=first_step * batch_size,
            unit="img",
            smoothing=0.1,
            disable=not (is_shown and on_terminal),
        )
        self.prints_lines = is_shown and not on_terminal

    def advance(self) -> None:
        """One step further."""
        self.bar.update(self.batch_size)

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """The latest numbers of training; lines take `train/images_per_second` for the remaining time."""
        text = ", ".join(form.format(values[name]) for name, form in SHOWN.items() if name in values)
        self.bar.set_postfix_str(text)
        if self.prints_lines:
            speed = values.get("train/images_per_second", 0.0)
            if speed > 0:
                seconds = (self.total_steps - step) * self.batch_size / speed
                text += f", {speed:.1f} images/s, {tqdm.format_interval(seconds)} left"
            print(f"step {step}: {text}", flush=True)

    def line(self, head: str, values: Mapping[str, float]) -> None:
        """The numbers of a validation."""
        text = f"{head}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        if self.prints_lines:
            print(text, flush=True)
        elif not self.bar.disable:
            self.bar.write(text)

    def close(self) -> None:
        """Leaves the bar as it is."""
        self.bar.close()
