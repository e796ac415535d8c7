"""The optional extra has an environment of its own, made by `scripts/setup --gptq`; without it nothing is tested here.

CI does not make it (two minutes, and gptqmodel forces another numpy and more), so run these by hand:

    scripts/setup --gptq && scripts/test --all tests/gptq
"""

from __future__ import annotations

from pathlib import Path

PYTHON = Path(__file__).resolve().parents[2] / ".venv-gptq" / "bin" / "python"

collect_ignore = [] if PYTHON.exists() else ["test_gptq.py"]
