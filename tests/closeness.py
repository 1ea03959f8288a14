"""Closeness as a share of an array's largest value, so that a test passes on every CPU.

Element by element, a tolerance asks most of the values near zero, where sums of large terms cancel and their rounding
errors, which another instruction set places elsewhere, are all that is left.
"""

from typing import Any

import numpy as np


def relative_error(actual: Any, expected: Any, floor: float = 0.0) -> float:
    """The largest difference over the largest absolute value of what is expected; both have the same shape."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"shape {actual.shape} where {expected.shape} is expected"
    difference, largest = np.abs(actual - expected).max(initial=0), np.abs(expected).max(initial=floor)
    if not largest:
        return np.inf if difference else 0.0
    return float(difference / largest)


def assert_close(actual: Any, expected: Any, rel: float = 1e-5, *, floor: float = 0.0, name: str = "arrays") -> None:
    """Fails where two arrays differ by more than `rel` of the largest absolute value of what is expected.

    Against zeros nothing but zeros is close, and not-a-number is close to nothing.

    Args:
        actual: what was computed.
        expected: of the same shape.
        rel: share of the largest value.
        floor: what the largest value is taken for at least: the size of the terms that cancel where exact arithmetic
            gives zeros.
        name: of the arrays, in the message.
    """
    found = relative_error(actual, expected, floor)
    assert found <= rel, f"{name} differ by {found:.1e} of the largest value, more than {rel:.1e}"


def assert_identical(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Fails where two dictionaries of arrays differ in a name, a type, a shape or a bit."""
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (array.dtype, array.shape), name
        bits = np.dtype(f"u{array.dtype.itemsize}")
        same = np.array_equal(np.ascontiguousarray(ours[name]).view(bits), np.ascontiguousarray(array).view(bits))
        assert same, f"{name} differs"
