"""An exported adapter on its base: loaded from the buffers that were checked, proved by its probe, given as peft's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from appliance.formats.core.canonical import parse_canonical
from appliance.ml.inference.adapters import Slots
from appliance.ml.inference.probe import read_probe, verify_close, verify_probe
from appliance.ml.model import machine
from appliance.ml.model.base import load_base
from appliance.ml.training.methods import apply_trained


def load_exported(base_folder: Path, files: Mapping[str, bytes], device: str) -> Any:
    """The peft model on exactly the tuple that was judged.

    Tampered where base and adapter give other logits than were sealed, bit for bit, or the peft model's are not close.
    """
    recipe = parse_canonical(files["recipe.json"])
    machine.use_determinism(0)
    base = load_base(
        base_folder,
        quantisation=recipe["quantisation"],
        compute_dtype=recipe["compute_dtype"],
        device=device,
        reads=True,
    )
    config, weights = files["adapter_config.json"], files["adapter_model.safetensors"]
    probe, slots = parse_canonical(files["probe.json"]), Slots(base)
    slots.load("exported", config, weights)
    with slots.using("exported"):
        adapted = read_probe(base)
    verify_probe(base, probe, read_probe(base), adapted)
    slots.remove()
    # peft multiplies in another order than the layers that were judged: near, and not the same bits.
    plain = replace(base, reader=None)
    model = apply_trained(plain, config, weights)
    verify_close(probe, read_probe(plain))
    return model
