"""Which code runs here."""

from __future__ import annotations

import importlib.metadata
from functools import cache

from appliance import __version__
from appliance.formats.core.digest import digest_bytes
from appliance.runners.host import digest_code
from appliance.workflows.core.context import Code

_PACKAGES = (
    "bitsandbytes",
    "cryptography",
    "gguf",
    "numpy",
    "peft",
    "pydantic",
    "safetensors",
    "sqlalchemy",
    "tokenizers",
    "torch",
    "transformers",
)


@cache
def describe_code() -> Code:
    """The service's version, a digest over its source files, and its packages by the digest of their RECORD."""
    packages = {}
    for name in _PACKAGES:
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        record = distribution.read_text("RECORD") or ""
        packages[f"{name}@{distribution.version}"] = digest_bytes(record.encode())
    return Code(__version__, digest_code(), packages)
