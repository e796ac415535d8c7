"""What is known of the machine that a worker will run on."""

from __future__ import annotations

import json
import os
from pathlib import Path

from appliance.formats.core.digest import digest_bytes, digest_file
from appliance.runners.sandbox import PACKAGE


def multiplies_bfloat16() -> bool:
    """Whether the CPU reports that it multiplies bf16 in hardware."""
    return bool(set(_read_text(Path("/proc/cpuinfo")).split()) & {"avx512_bf16", "amx_bf16", "bf16"})


def describe_host(cuda: bool) -> str:
    """The kind of this machine, in the words of its driver or its CPU: what a calibration is labelled with."""
    threads = len(os.sched_getaffinity(0))
    texts = (
        [_read_text(path) for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))] if cuda else []
    )
    for text, key in [*((text, "Model") for text in texts), (_read_text(Path("/proc/cpuinfo")), "model name")]:
        for line in text.splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return f"{value.strip()}, {threads} threads"
    return f"{os.uname().machine}, {threads} threads"


def digest_code() -> str:
    """A digest over the appliance's own source files, as this machine has them."""
    files = {str(path.relative_to(PACKAGE)): digest_file(path) for path in sorted(PACKAGE.rglob("*.py"))}
    return digest_bytes(json.dumps(files, sort_keys=True).encode())


def _read_text(path: Path) -> str:
    """The file's text; empty where it cannot be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def visible_cards() -> list[str]:
    """The cards that a worker may see, as CUDA names them: those that the site gave the service, else the first."""
    return [card.strip() for card in os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",") if card.strip()]
