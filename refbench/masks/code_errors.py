"""What is wrong with a run-length code, as the kernels tell it."""

from __future__ import annotations

BAD_CHARACTER, TRUNCATED, TOO_LONG, NEGATIVE, WRONG_SUM = -1, -2, -3, -4, -5

REASONS = {
    BAD_CHARACTER: "it holds a character outside '0'..'o'",
    TRUNCATED: "it ends in the middle of a count",
    TOO_LONG: "one of its counts is longer than 35 bits",
    NEGATIVE: "one of its counts is negative",
    WRONG_SUM: "its counts do not add up to height times width",
}
