"""The models of `scripts/bench train|serve|plan --model`, as imported bases and as GGUF files for llama.cpp.

Downloads and models that take long to build are cached in `.cache`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from appliance.ml.quantised.nf4 import NF4_FILE
from scripts.benches.llama_file import write_model
from scripts.fetch_base import fetch
from scripts.kit.random_llama import build_llama

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"


@dataclass(frozen=True)
class Model:
    """A model to measure with.

    `title`: the name in tables. `start_s`: the goal for the seconds from an activation to the first answer, while no
    engine runs.
    """

    name: str
    title: str
    start_s: float

    def convert(self, folder: Path) -> Path:
        """Return the base as an import makes it. Make it in the folder unless it is there."""
        return convert(self._source(), folder)

    def find_gguf(self) -> Path:
        """Return the GGUF file of the same weights in 4 bits, for llama.cpp. Fetch or write it first if needed."""
        if self.name == "smollm2":
            return fetch(CACHE)
        return write_model(self._source(), fetch(CACHE), CACHE / "llama-1b.Q4_0.gguf")

    def _source(self) -> Path:
        """Return the model as a publisher ships it: a GGUF file or a folder."""
        if self.name == "smollm2":
            return fetch(CACHE)
        folder = CACHE / "llama-1b"
        if folder.is_dir():
            return folder
        with tempfile.TemporaryDirectory(prefix="appliance-bench-") as scratch:
            return build_llama(folder, convert(fetch(CACHE), Path(scratch)))


SMOLLM2 = Model("smollm2", "SmolLM2, 135 million", start_s=3)
BILLION = Model("1b", "a random Llama, 1.17 billion", start_s=5)
MODELS = {one.name: one for one in (SMOLLM2, BILLION)}


def convert(source: Path, folder: Path) -> Path:
    """Convert a model into `folder/base` as an import does, unless it is there.

    A process of its own converts, so that its memory is not counted as the bench's.
    """
    base = folder / "base"
    if not base.is_dir():
        base.mkdir(parents=True)
        code = "import sys, pathlib, appliance.ml.model.convert as c; c.convert_base(*map(pathlib.Path, sys.argv[1:]))"
        command = [sys.executable, "-c", code, str(source), str(base)]
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"bench: {source.name} could not be converted: {done.stderr[-2000:]}")
    return base


def as_shipped(base: Path) -> Path:
    """Return a folder beside the base with the publisher's files alone, without the NF4 weights that an import adds."""
    folder = base.with_name("shipped")
    if not folder.is_dir():
        folder.mkdir()
        for path in base.iterdir():
            if path.name != NF4_FILE:
                (folder / path.name).hardlink_to(path)
    return folder
