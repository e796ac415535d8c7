"""Tests a new environment with its own Python: selftest.py NAME==VERSION... Exit code 0 says that it can be used."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys

MODULES = (
    "appliance.cli.main",
    "appliance.wiring",
    "appliance.worker.serve",
    "appliance.verifier",
    "appliance.witness",
)
"""Modules that the service, its workers and people start."""


def main() -> None:
    for name, _, version in (requirement.partition("==") for requirement in sys.argv[1:]):
        got = importlib.metadata.version(name)
        if got.replace("_", "-") != version.replace("_", "-"):
            sys.exit(f"{name}: expected version {version}, got {got}")
    for module in MODULES:
        importlib.import_module(module)
    from appliance.sandbox.description import detect_layers

    layers = detect_layers()
    print("layers of the sandbox:", ", ".join(f"{name} {'yes' if layers[name] else 'NO'}" for name in sorted(layers)))


if __name__ == "__main__":
    main()
