"""Lossless JPEG and JPEG of 12 bits, against encoders of the tests' own."""

import numpy as np
import pytest
from drawn_dicom import jpeg_of_blocks, lossless_jpeg

from medvlsm_jax.data.scans.jpeg_codes import read_jpeg
from medvlsm_jax.data.scans.jpeg_lossless import decode_lossless
from medvlsm_jax.data.scans.jpeg_sequential import decode_sequential


@pytest.fixture
def pixels(rng):
    return (np.add.outer(np.arange(24) * 90, np.arange(19) * 70) + rng.integers(0, 300, (24, 19))).astype(np.uint16)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("selection", range(1, 8))
def test_values_come_back_from_each_predictor(pixels, selection):
    decoded = decode_lossless(read_jpeg(lossless_jpeg(pixels, 12, selection)))
    np.testing.assert_array_equal(decoded[..., 0], pixels)


def test_differences_may_be_as_large_as_values(rng):
    pixels = rng.choice(np.array([0, 1, 32767, 32768, 65535], np.uint16), (20, 30))
    np.testing.assert_array_equal(decode_lossless(read_jpeg(lossless_jpeg(pixels, 16)))[..., 0], pixels)


def test_blocks_of_12_bits_come_back(rng):
    blocks = rng.integers(0, 4096, (5, 7))
    decoded = decode_sequential(read_jpeg(jpeg_of_blocks(blocks)))
    np.testing.assert_array_equal(decoded[..., 0], np.kron(blocks, np.ones((8, 8))))


@pytest.mark.parametrize("length", [3, 20, 60, 200, -3])
def test_what_ends_early_is_refused(pixels, length):
    data = lossless_jpeg(pixels, 12)
    with pytest.raises(ValueError, match=r"JPEG|frame"):
        decode_lossless(read_jpeg(data[:length]))


def test_bits_that_are_missing_are_no_black_pixels(pixels):
    data = lossless_jpeg(pixels, 12)
    with pytest.raises(ValueError, match="ends early"):
        decode_lossless(read_jpeg(data[:-40] + data[-2:]))
