"""The real service with workers that compute as on another kind of machine: an older instruction set, other bits."""

from __future__ import annotations

from typing import Any

from appliance import wiring
from appliance.config.settings import load_settings
from appliance.sandbox import local
from appliance.sandbox.description import Sandbox

OLDER = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}


def main() -> None:
    build = local._environment

    def older(sandbox: Sandbox) -> dict[str, str]:
        return {**build(sandbox), **OLDER}

    changed: Any = local
    changed._environment = older
    wiring.serve(load_settings(), embedded=False)


if __name__ == "__main__":
    main()
