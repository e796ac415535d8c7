"""The two listeners that units can use. A test file of attacks on their API imports both names."""

from __future__ import annotations

import pytest

one_of_both = pytest.mark.family(keep=0.5)
"""Each attack over one of the two, drawn anew in each run, and with --all over each."""


@pytest.fixture(scope="module", params=["plain", "tls"])
def wire(request: pytest.FixtureRequest) -> str:
    return str(request.param)
