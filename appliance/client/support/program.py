"""How the client starts another of the appliance's programs: in an interpreter that reads nothing of what is around it.

Neither the working folder, nor a home, nor PYTHONPATH can put code before Python's own library (`-I`); the program is
found by the folder that this package lies in.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = "/"
"""The working folder of a program that needs none."""
_ROOT = str(Path(__file__).resolve().parents[3])
_START = (
    "import runpy, sys; root, module = sys.argv[1:3]; del sys.argv[1:3]; "
    "sys.path.insert(0, root); runpy.run_module(module, run_name='__main__', alter_sys=True)"
)


def isolated(python: str, module: str, *words: str) -> list[str]:
    """The command by which that Python runs the module with these words."""
    return [python, "-I", "-c", _START, _ROOT, module, *words]
