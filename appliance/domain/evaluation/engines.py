"""What answers with an adapter: the appliance's own engine, or another one that the adapter was judged on too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from appliance.domain.core.names import OtherEngine


VLLM: OtherEngine = "vllm"
VLLM_SLOTS = 8
"""Adapters that it holds at a time: it keeps room for all of them from its start."""
_SHARE = re.compile(r"[01]\.[0-9]{1,12}")


def judged_engines(metrics: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """The engines beside the appliance's own on which an adapter was judged, and whose probe came out close enough."""
    return tuple(sorted(name for name, found in metrics.get("engines", {}).items() if _is_close(found)))


def _is_close(found: object) -> bool:
    texts = [found.get(name) for name in ("probe_off", "probe_within")] if isinstance(found, dict) else []
    if len(texts) != 2 or not all(isinstance(text, str) and _SHARE.fullmatch(text) for text in texts):
        return False
    off, within = (Decimal(str(text)) for text in texts)
    return off <= within <= 1


def describe_engine(name: str, found: Mapping[str, Any]) -> str:
    """One line for a reviewer."""
    if "refused" in found:
        return f"{name} cannot load this adapter ({found['refused']})"
    shown = [f"{member} {found[member]}" for member in ("accuracy", "loss") if member in found]
    return (
        f"{name} {found['version']}, {found['form']}: {', '.join(shown) or 'probe alone'} on {found['rows']} held-out "
        f"rows; its probe is off by {found['probe_off']} of the largest logit, {found['probe_within']} is allowed"
    )
