"""How our test modules say why they leave a test of the suite out, or replace one.

`scripts/run_conformance.py` reads both from the results and lists them apart from the suite's own skips.
"""

import unittest


SKIP_PREFIX = "spot_vit: "


def skip(reason: str):
    """Leaves a test of the suite out: `test_x = skip("why")(None)` in the class body, or on top of a method."""
    return unittest.skip(SKIP_PREFIX + reason)


def replaces(reason: str):
    """Marks a test of ours that takes the place of the suite's test of the same name."""

    def mark(test):
        test.replaces_because = reason
        return test

    return mark
