"""The properties of a machine that decide bits, as records name them."""

from __future__ import annotations

import pytest
import torch

from appliance.ml.model import machine


@pytest.mark.parametrize(("tiles", "name"), [(True, "AVX512 and AMX"), (False, "AVX512")])
def test_a_cpu_is_named_by_its_vectors_and_its_tiles(tiles: bool, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processors with the same vectors, one with AMX, give other bits: they are not of one kind."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    assert machine.describe_kind("cpu")["device_name"] == name
    assert machine.has_independent_rows("cpu") is not tiles
    assert not machine.has_independent_rows("cuda")
