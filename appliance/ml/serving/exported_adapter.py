"""An exported adapter on its base, through peft: loaded from the buffers that were checked, and proved by its probe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance.formats.core.canonical import parse_canonical
from appliance.ml.inference.probe import read_probe, verify_probe
from appliance.ml.model import machine
from appliance.ml.model.base import load_base
from appliance.ml.training.methods import apply_trained


def load_exported(base_folder: Path, files: Mapping[str, bytes], device: str) -> Any:
    """The peft model on exactly the tuple that was judged; Tampered where its probe gives other logits than sealed."""
    recipe = parse_canonical(files["recipe.json"])
    machine.use_determinism(0)
    base = load_base(
        base_folder,
        quantisation=recipe["quantisation"],
        compute_dtype=recipe["compute_dtype"],
        device=device,
    )
    model = apply_trained(base, files["adapter_config.json"], files["adapter_model.safetensors"])
    # In this order: bitsandbytes packs a layer when it first answers, and peft must have wrapped it before.
    adapted = read_probe(base)
    with model.disable_adapter():
        plain = read_probe(base)
    verify_probe(base, parse_canonical(files["probe.json"]), plain, adapted)
    return model
