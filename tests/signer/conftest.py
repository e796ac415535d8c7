"""The token of these tests. A process loads the module of SoftHSM once, with the tokens that exist then."""

from __future__ import annotations

import pytest

from tests.kit.softhsm import make_token


@pytest.fixture(scope="session")
def token_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_token(tmp_path_factory.mktemp("hsm"))
