"""A fixed prompt whose exact logits identify base, quantisation, dtypes, template and adapter together.

Taken when an adapter is evaluated, sealed with it, and compared bit for bit before a slot answers: this shows that what
is served is what was evaluated, and that the adapter is in use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from appliance.errors import BadInput, Tampered
from appliance.formats.core.digest import digest_bytes
from appliance.ml.layers.packing import Pack
from appliance.ml.model.base import Base

MESSAGES = ({"role": "user", "content": "State in one sentence what you were made for, and name the number 42."},)
LOGITS = 8
CLOSE = 0.1
"""Of the largest logit that is read: how far off a probe may be through arithmetic in another order, in bfloat16."""


@dataclass(frozen=True)
class Reading:
    """Some logits of the prompt's last token as exact decimal text, and the digest of all of them at every token."""

    logits: tuple[str, ...]
    digest: str


def find_probe(base: Base) -> tuple[str, list[int], list[int]]:
    """The prompt, its token ids, and the vocabulary's places that are read, spread evenly."""
    prompt = base.chat.render(MESSAGES)
    size = base.head().weight.shape[0]
    return prompt, base.chat.encode(prompt), [size * place // LOGITS for place in range(LOGITS)]


def read_probe(base: Base) -> Reading:
    """One pass over the probe's prompt, alone in its batch, with whatever adapter is in use."""
    _, tokens, places = find_probe(base)
    pack = Pack()
    pack.add(tokens)
    with torch.inference_mode():
        logits = base.head().logits(base.read_pack(pack)).float().cpu()
    data = logits.numpy().astype("<f4").tobytes()
    return Reading(tuple(encode_number(logits[-1, place].item()) for place in places), digest_bytes(data))


def encode_number(value: float) -> str:
    """The shortest decimal text that gives back this float32, without an exponent."""
    return np.format_float_positional(np.float32(value), unique=True, trim="0")


def encode_probe(base: Base, plain: Reading, adapted: Reading) -> dict[str, Any]:
    """What is sealed: strings and integers alone, since nothing signed holds a float."""
    prompt, tokens, places = find_probe(base)
    return {
        "prompt": prompt,
        "tokens": tokens,
        "indices": places,
        "base_logits": list(plain.logits),
        "base_digest": plain.digest,
        "adapter_logits": list(adapted.logits),
        "adapter_digest": adapted.digest,
    }


def verify_probe(base: Base, sealed: Mapping[str, Any], plain: Reading, adapted: Reading) -> None:
    """Tampered where base or adapter answers otherwise than when it was evaluated, or the adapter does nothing."""
    if not isinstance(sealed, Mapping):
        raise BadInput(f"probe: expected an object, got {type(sealed).__name__}")
    expected = encode_probe(base, plain, adapted)
    for key, value in expected.items():
        if sealed.get(key) != value:
            raise Tampered(f"probe, {key}: expected {_show(sealed.get(key))}, got {_show(value)}", code="probe-differs")
    if plain.digest == adapted.digest:
        raise Tampered("probe: expected the adapter to change the logits, got the base's", code="adapter-inactive")


def verify_close(sealed: Mapping[str, Any], found: Reading) -> None:
    """Tampered where another arithmetic than the judged one (peft's own) gives logits that are not `CLOSE`."""
    expected = [float(text) for text in sealed["adapter_logits"]]
    most = CLOSE * max(map(abs, expected))
    for place, (one, other) in enumerate(zip(expected, map(float, found.logits), strict=True)):
        if not abs(one - other) <= most:
            raise Tampered(
                f"probe, adapter_logits, {place}: expected {one} within {most:.3g}, got {other}", code="probe-differs"
            )


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
