"""The first code of the worker after exec: it repeats what exec reset, forbids further execs, and runs the entry.

The arguments are the folder of the package with the worker's module, the entry, and the entry's own arguments. Packages
are imported by their folders, since the folders around them are not visible in the sandbox.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from pathlib import Path

FILTERED = "APPLIANCE_FILTERED"
"""Environment variable that is set while the call filter is in force; it is removed before the entry runs."""


def _register(folder: Path) -> None:
    spec = importlib.util.spec_from_file_location(
        folder.name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise SystemExit(f"{folder}: expected a Python package, got none")
    package = importlib.util.module_from_spec(spec)
    sys.modules[folder.name] = package
    spec.loader.exec_module(package)


def _run(code: str, entry: str) -> None:
    own = Path(__file__).parents[1]
    for folder in dict.fromkeys((own, Path(code))):
        _register(folder)
    from appliance.sandbox import kernel, seccomp

    kernel.forbid_dumps()
    if os.environ.pop(FILTERED, ""):
        seccomp.forbid_exec()
    runpy.run_module(entry, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.argv = arguments[1:]
    _run(arguments[0], arguments[1])
