"""Comparing windows."""

import numpy as np


def assert_same(got, want):
    """Asserts that two windows, or a window and a dict of columns, hold the same values."""
    want = want if isinstance(want, dict) else want.columns()
    got = got.columns()
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
