"""The files that an auditor has in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.verifier.test_program import Files


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)
