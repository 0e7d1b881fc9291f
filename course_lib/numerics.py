"""Chapter 4's number formats, exactly: values are float64, which holds every number of every format here."""

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Format:
    """A binary floating-point format: one sign bit, `exponent` bits, `mantissa` bits.

    `finite`: the all-ones exponent holds numbers too, only its last code is NaN (OCP FP8 E4M3); there is no infinity.
    """

    name: str
    exponent: int
    mantissa: int
    finite: bool = False

    @property
    def bits(self) -> int:
        """Width in bits."""
        return 1 + self.exponent + self.mantissa

    @property
    def bias(self) -> int:
        """What the stored exponent is too large by."""
        return 2 ** (self.exponent - 1) - 1

    @property
    def largest(self) -> float:
        """The largest finite number."""
        if self.finite:
            return 2.0 ** (self.bias + 1) * (2 - 2.0 ** (1 - self.mantissa))
        return 2.0**self.bias * (2 - 2.0**-self.mantissa)

    @property
    def smallest_normal(self) -> float:
        """Below it the spacing no longer shrinks; zero is one `spacing(0, form)` from the smallest number."""
        return 2.0 ** (1 - self.bias)


FLOAT32 = Format("float32", 8, 23)
FLOAT16 = Format("float16", 5, 10)
BFLOAT16 = Format("bfloat16", 8, 7)
E4M3 = Format("float8_e4m3fn", 4, 3, finite=True)
E5M2 = Format("float8_e5m2", 5, 2)
FORMATS = [FLOAT32, FLOAT16, BFLOAT16, E4M3, E5M2]


def decode(code: int, form: Format) -> float:
    """The value of a bit pattern (an unsigned integer of `form.bits` bits); equation eq-float.

    (−1)^s · 2^(e−bias) · (1 + m/2^p), and for e = 0 the subnormals (−1)^s · 2^(1−bias) · m/2^p.
    """
    sign = -1.0 if code >> (form.bits - 1) else 1.0
    e = (code >> form.mantissa) & (2**form.exponent - 1)
    m = code & (2**form.mantissa - 1)
    if e == 2**form.exponent - 1 and (not form.finite or m == 2**form.mantissa - 1):
        return float("nan") if m else sign * float("inf")
    if e == 0:
        return sign * 2.0 ** (1 - form.bias) * m / 2**form.mantissa
    return sign * 2.0 ** (e - form.bias) * (1 + m / 2**form.mantissa)


def encode(value: float, form: Format) -> int:
    """The bit pattern of `value` rounded to the format; the inverse of `decode`."""
    rounded = float(round_to(value, form))
    sign = int(np.signbit(rounded)) << (form.bits - 1)
    if not np.isfinite(rounded):
        ones = (2**form.exponent - 1) << form.mantissa
        return sign | ones | (2**form.mantissa - 1 if np.isnan(rounded) else 0)
    e = int(np.frexp(max(abs(rounded), form.smallest_normal))[1]) - 1
    steps = int(abs(rounded) / 2.0 ** (e - form.mantissa))  # of a normal number with its leading 1, which …
    return sign | (((e + form.bias - 1) << form.mantissa) + steps)  # … carries into the exponent


def spacing(x: Array | float, form: Format) -> Array:
    """From |x| to the next larger number, 2^(⌊log₂|x|⌋ − p), constant below the normals; equation eq-ulp."""
    exponent = np.frexp(np.maximum(np.abs(x), form.smallest_normal))[1] - 1
    return np.ldexp(1.0, exponent - form.mantissa)


def round_to(x: Array | float, form: Format) -> Array:
    """The nearest number, ties to the even mantissa, beyond the largest ±∞ (NaN if `finite`); equation eq-round."""
    x = np.asarray(x, dtype=np.float64)
    step = spacing(np.where(np.isfinite(x), x, 1.0), form)
    rounded = np.where(np.isfinite(x), np.rint(x / step) * step, x)  # np.rint rounds halves to even
    over = np.nan if form.finite else np.copysign(np.inf, x)
    return np.where(np.abs(rounded) > form.largest, over, rounded)


def is_lost(weight: Array | float, update: Array | float, form: Format) -> Array:
    """Whether adding `update` leaves `weight`, a number of the format, as it is; equation eq-lost."""
    weight = np.asarray(weight, dtype=np.float64)
    return round_to(weight + np.asarray(update, dtype=np.float64), form) == weight
