"""Which values are shown from black to white."""

import math

import numpy as np
from jaxtyping import Num, UInt8

from medvlsm_jax.data.scans.scan import Window
from medvlsm_jax.errors import UserError

# Of CT, in Hounsfield units: center and width as Radiopaedia's article "Windowing (CT)" has them; of subdural, the
# middle of its ranges, 50 to 100 and 130 to 300.
PRESETS = {
    "brain": Window(40, 80),
    "subdural": Window(75, 215),
    "stroke": Window(40, 40),
    "temporal_bone": Window(600, 2800),
    "bone": Window(400, 1800),
    "lung": Window(-600, 1500),
    "mediastinum": Window(50, 350),
    "abdomen": Window(50, 400),
    "soft_tissue": Window(50, 400),
    "liver": Window(30, 150),
    "spine": Window(50, 250),
}
PERCENTILES = (0.5, 99.5)
MIN_MARGIN = 0.05  # the share of values from which on the smallest one is taken for what lies around the patient


def parse_window(text: str) -> Window:
    """The window that `--window` names: CENTER:WIDTH, as in 40:400, or a preset.

    Raises:
        UserError: it is neither, or its width is not above 0.
    """
    if preset := PRESETS.get(text.strip().lower().replace("-", "_")):
        return preset
    try:
        center, width = (float(number) for number in text.split(":"))
    except ValueError:
        center = width = math.nan
    if not (math.isfinite(center) and math.isfinite(width) and width > 0):
        raise UserError(
            f"--window={text} is no window: give CENTER:WIDTH with a width above 0, as in 40:400, "
            f"or one of {', '.join(PRESETS)}"
        )
    return Window(center, width)


def apply_window(values: Num[np.ndarray, "..."], window: Window) -> UInt8[np.ndarray, "..."]:
    """Black up to center - width / 2, white from center + width / 2 on, linear between; NaN is black.

    This is LINEAR_EXACT of DICOM PS3.3 C.11.2.1.3.2. DICOM's LINEAR moves the center by half a unit and takes one from
    the width, for whole numbers; it has no meaning for values such as those of normalised MR, of which a window may be
    narrower than 1.
    """
    with np.errstate(all="ignore"):
        share = (values.astype(np.float64) - window.center) / window.width + 0.5
        share = np.where(np.isnan(share), 0.0, np.clip(share, 0.0, 1.0))
    return np.rint(share * 255).astype(np.uint8)


def stretching_window(sample: Num[np.ndarray, "..."]) -> Window:
    """From the 0.5 to the 99.5 percentile of some values, as is usual for MR, whose numbers have no unit.

    NaN and infinite values are left out; so is the smallest value where at least one in twenty has it: the margin
    around a patient, which may be most of the picture, and far below what is in it. One value for all is black.
    """
    finite = sample[np.isfinite(sample)].astype(np.float64)
    if not finite.size:
        return Window(0.5, 1.0)
    smallest, largest = finite.min(), finite.max()
    inside = finite[finite > smallest]
    is_margin = finite.size - inside.size >= MIN_MARGIN * finite.size
    low, high = np.percentile(inside if is_margin and inside.size else finite, PERCENTILES)
    if low == high:
        low, high = smallest, largest
    if low == high:
        high = low + max(1.0, abs(low))
    return Window(float(low / 2 + high / 2), float(high - low))
