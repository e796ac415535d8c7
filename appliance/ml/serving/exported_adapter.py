"""Loading of an exported adapter on its base, from checked buffers, with verification by its logit fingerprint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from appliance.formats.core.canonical import parse_canonical
from appliance.ml.inference.adapters import AdapterSlots
from appliance.ml.inference.reading import read_fingerprint, verify_close, verify_fingerprint
from appliance.ml.model import machine
from appliance.ml.model.base import load_for
from appliance.ml.training.methods import apply_trained


def load_exported(base_folder: Path, files: Mapping[str, bytes], device: str) -> Any:
    """Return the PEFT model, with the quantisation and dtype of the evaluation.

    Raises:
        Tampered: logits of base or adapter differ from the sealed ones in any bit, or those of the PEFT model are not
            close.
    """
    recipe = parse_canonical(files["recipe.json"])
    machine.use_determinism(0)
    base = load_for(base_folder, {**recipe, "device": device})
    config, weights = files["adapter_config.json"], files["adapter_model.safetensors"]
    fingerprint, slots = parse_canonical(files["logit_fingerprint.json"]), AdapterSlots(base)
    slots.load("exported", config, weights)
    with slots.using("exported"):
        adapted = read_fingerprint(base)
    verify_fingerprint(base, fingerprint, read_fingerprint(base), adapted)
    slots.remove()
    # PEFT multiplies in another order than the evaluated layers, so its logits are close but not equal.
    plain = replace(base, reader=None)
    model = apply_trained(plain, config, weights)
    verify_close(fingerprint, read_fingerprint(plain))
    return model
