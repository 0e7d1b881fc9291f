"""Chapter 4's number formats against torch's and NumPy's: every 8- and 16-bit pattern, and rounding at every tie."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib import numerics
from course_lib.numerics import BFLOAT16, E4M3, E5M2, FLOAT16, FLOAT32, FORMATS

SMALL = [FLOAT16, BFLOAT16, E4M3, E5M2]


def dtype(form):
    return getattr(torch, form.name)


def every_value(form):
    """All values of a format, by torch, float64."""
    integers = {8: torch.uint8, 16: torch.int16}[form.bits]
    codes = torch.arange(2**form.bits).to(integers)
    return codes.view(dtype(form)).double().numpy()


def by_torch(values, form):
    """float64 → the format → float64; through float32 only where that is exact."""
    assert (values.astype(np.float32) == values).all()
    return torch.from_numpy(values.astype(np.float32)).to(dtype(form)).double().numpy()


@pytest.mark.parametrize("form", SMALL, ids=lambda f: f.name)
def test_every_pattern_decodes_to_torchs_value(form):
    """Equation eq-float."""
    ours = np.array([numerics.decode(code, form) for code in range(2**form.bits)])
    assert np.array_equal(ours, every_value(form), equal_nan=True)
    for code, value in enumerate(ours):
        assert np.isnan(value) or numerics.encode(value, form) == code


@given(st.integers(0, 2**32 - 1))
def test_float32_decodes_to_numpys_value(code):
    """Equation eq-float."""
    expected = np.array(code, dtype=np.uint32).view(np.float32)
    assert np.array_equal(np.float32(numerics.decode(code, FLOAT32)), expected, equal_nan=True)
    if not np.isnan(expected):
        assert numerics.encode(float(expected), FLOAT32) == code


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.name)
def test_limits_are_torchs(form):
    info = torch.finfo(dtype(form))
    assert (form.largest, form.smallest_normal) == (info.max, info.smallest_normal)
    assert numerics.spacing(0.0, form) == info.smallest_normal * 2.0**-form.mantissa
    assert numerics.spacing(1.0, form) == info.eps


@pytest.mark.parametrize("form", SMALL, ids=lambda f: f.name)
def test_spacing_is_the_distance_to_the_next_number(form):
    """Equation eq-ulp."""
    positive = np.sort(every_value(form)[: 2 ** (form.bits - 1)])
    positive = positive[np.isfinite(positive)]
    assert np.array_equal(numerics.spacing(positive[:-1], form), np.diff(positive))


@pytest.mark.parametrize("form", SMALL, ids=lambda f: f.name)
def test_rounding_is_torchs_at_every_tie_and_beside_it(form):
    """Equation eq-round."""
    finite = np.unique(every_value(form)[np.isfinite(every_value(form))])
    halfway = (finite[1:] + finite[:-1]) / 2
    assert (halfway.astype(np.float32) == halfway).all()
    beside = [np.nextafter(halfway.astype(np.float32), np.float32(to)).astype(np.float64) for to in (-np.inf, np.inf)]
    for values in (finite, halfway, *beside):
        assert np.array_equal(numerics.round_to(values, form), by_torch(values, form))


@settings(max_examples=200)
@given(st.floats(width=32, allow_nan=False))
def test_rounding_is_torchs_anywhere(value):
    """Equation eq-round; beyond the largest number of float8 E4M3 some versions of torch saturate, so not there."""
    for form in (FLOAT16, BFLOAT16, E5M2):
        assert np.array_equal(numerics.round_to([value], form), by_torch(np.array([value]), form))


@given(st.floats(-60000, 60000, width=16), st.floats(-1, 1, width=32))
def test_a_lost_update_is_one_that_numpy_loses(weight, update):
    """Equation eq-lost."""
    # The sum of a float16 and a float32 below 1 in size: exact in float64 for all that can matter.
    kept = np.float16(np.float64(weight) + np.float64(update)) != np.float16(weight)
    assert numerics.is_lost(weight, update, FLOAT16) == (not kept)
    assert numerics.is_lost(1.0, 2.0**-11, FLOAT16)  # a tie goes to the even mantissa, that of 1
    assert not numerics.is_lost(1.0, -(2.0**-11), FLOAT16)  # below 1 the spacing is half as wide


def test_nothing_is_left_of_too_large_a_number():
    assert numerics.round_to(1e6, FLOAT16) == np.inf
    assert numerics.round_to(-1e6, FLOAT16) == -np.inf
    assert np.isnan(numerics.round_to(1e6, E4M3))
