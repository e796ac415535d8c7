"""The real service, whose workers compute as on another kind of machine: an older instruction set, and other bits."""

from __future__ import annotations

from typing import Any

from appliance import wiring
from appliance.config.load import load_settings
from appliance.runners import local
from appliance.runners.sandbox import Sandbox

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
