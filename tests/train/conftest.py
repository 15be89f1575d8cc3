"""What holds for every test of the torch room."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Whatever draws from torch's own generator draws the same, whichever tests ran before."""
    pytest.importorskip("torch").manual_seed(0)
