"""`scripts/bench plan`: compares planned memory and time of training with measured values on this machine.

Each configuration is trained for a few steps in a process of its own, on a base that the command line names, with rows
of many lengths. The plan uses only what an import measures: the base's dimensions, and quantiles of the lengths.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.domain.planning.footprint import Subject, plan_memory
from appliance.domain.planning.shape import DecoderShape, profile_lengths
from appliance.domain.recipe.methods import METHODS
from appliance.domain.recipe.parsing import parse_recipe
from appliance.domain.recipe.recipe import ResolutionFacts, ResolvedRecipe, resolve_recipe
from scripts.benches import models
from scripts.benches.measure import Row, describe_machine, markdown_table, plain_table, row, write_json

STEPS, SHARED, ANSWER = 4, 16, 6
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Configuration:
    """Differences from the recipe's defaults. Rows have from a quarter of `length` up to `length` tokens."""

    length: int
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        changes = [f"{key} {value}" for key, value in self.recipe.items() if key != "method"]
        return ", ".join([self.recipe.get("method", "qlora"), f"rows of up to {self.length} tokens", *changes])


QUICK = (
    Configuration(128),
    Configuration(128, {"gradient_checkpointing": "layer"}),
    Configuration(128, {"method": "lora"}),
    Configuration(64, {"method": "full"}),
)
FULL = (
    *QUICK,
    Configuration(48),
    Configuration(256),
    Configuration(512, {"batch_size": 4}),
    Configuration(1024, {"batch_size": 2, "gradient_checkpointing": "none"}),
    Configuration(256, {"gradient_checkpointing": "mlp"}),
    Configuration(512, {"gradient_checkpointing": "layer", "batch_size": 4}),
    Configuration(128, {"rank": 64}),
    Configuration(128, {"compute_dtype": "float32"}),
    Configuration(256, {"method": "lora"}),
    Configuration(128, {"method": "lora", "compute_dtype": "float32"}),
    Configuration(128, {"method": "full"}),
    Configuration(128, {"method": "full", "gradient_checkpointing": "layer"}),
)
BILLION_QUICK = (
    Configuration(64, {"batch_size": 4}),
    Configuration(64, {"batch_size": 4, "gradient_checkpointing": "layer"}),
    Configuration(128, {"batch_size": 2, "gradient_checkpointing": "mlp"}),
    Configuration(64, {"method": "lora", "batch_size": 2}),
)
BILLION = (
    *BILLION_QUICK,
    Configuration(256, {"batch_size": 4}),
    Configuration(512, {"batch_size": 2, "gradient_checkpointing": "layer"}),
    Configuration(128, {"batch_size": 4, "rank": 64}),
    Configuration(256, {"method": "lora", "batch_size": 2, "gradient_checkpointing": "layer"}),
)
"""Full fine-tuning is left out: weights, gradients and the optimiser's state would take 19 GB."""
CONFIGURATIONS = {"smollm2": (QUICK, FULL), "1b": (BILLION_QUICK, BILLION)}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench plan", description="Plan and measure, side by side.")
    parser.add_argument("--quick", action="store_true", help="four configurations: two minutes")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows as JSON")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument(
        "--model", choices=[*CONFIGURATIONS], default="smollm2", help="which base, and its configurations"
    )
    parser.add_argument("--base", metavar="FILE", type=Path, help="another base: a GGUF file or a folder")
    parser.add_argument("--folder", metavar="DIR", type=Path, help="keep the converted base there, and use it again")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="appliance-bench-") as scratch:
        folder, rows = given.folder or Path(scratch), []
        base = models.convert(given.base, folder) if given.base else models.MODELS[given.model].convert(folder)
        quick, full = CONFIGURATIONS[given.model]
        for found in measure(base, quick if given.quick else full):
            rows.append(found)
            print(f"bench: {plain_table([found]).splitlines()[1]}", file=sys.stderr, flush=True)
    if given.json:
        write_json(given.json, rows)
    table, bullet = (markdown_table, "- ") if given.markdown else (plain_table, "")
    machine = describe_machine(Path.cwd())
    print("\n".join([*(f"{bullet}{line}" for line in machine), "", table(rows)]))


def measure(base: Path, configurations: Sequence[Configuration]) -> Iterator[Row]:
    """Yield a row for each configuration, in MB, then the errors over all of them, in percent."""
    errors = []
    for one in configurations:
        subject, recipe, lengths = prepare(base, one)
        planned = plan_memory(subject, recipe).training_peak
        peak = run_one(base, recipe, lengths)["peak"]
        errors.append(planned / peak - 1)
        yield row(
            one.name, planned / 1e6, "MB planned", against="measured", theirs=peak / 1e6, note=f"{errors[-1]:+.1%}"
        )
    sizes = [abs(error) * 100 for error in errors]
    yield row("mean error", statistics.fmean(sizes), "%", at_most=15)
    yield row("worst error", max(sizes), "%", at_most=30)
    yield row("largest underestimate", max(0.0, -min(errors) * 100), "%", at_most=0)


def prepare(base: Path, one: Configuration) -> tuple[Subject, ResolvedRecipe, list[int]]:
    """Return the facts for the plan, the resolved recipe, and the lengths of the rows, which the plan does not get."""
    config = json.loads((base / "config.json").read_bytes())
    written = {"name": "bench", "base": "base", "dataset": "rows@1", "purpose": "baseline", "device": "cpu"}
    written |= {"epochs": 1, "gradient_checkpointing": "none", **one.recipe}
    if METHODS[one.recipe.get("method", "qlora")].low_rank:
        written.setdefault("rank", 16)
    rows = STEPS * int(written.get("batch_size", 8))
    least = one.length // 4
    lengths = [one.length - (number * 7919) % (one.length - least + 1) for number in range(rows)]
    facts = ResolutionFacts(
        train_rows=rows,
        max_tokens=one.length,
        context_length=config["max_position_embeddings"],
        device="cpu",
        bfloat16=True,
    )
    profile = profile_lengths(lengths, shared=SHARED, trained=ANSWER)
    subject = Subject(read_shape(base, config), 2 if config["dtype"] == "bfloat16" else 4, profile, rows, rows)
    return subject, resolve_recipe(parse_recipe(written), facts), lengths


def read_shape(base: Path, config: dict[str, Any]) -> DecoderShape:
    """Read the dimensions from the base's configuration, and count the weights from its files, without those in NF4."""
    files = sorted(base.glob("model*.safetensors"))
    headers = [json.loads(_header(path)) for path in files]
    shapes = [one["shape"] for header in headers for name, one in header.items() if name != "__metadata__"]
    return DecoderShape(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        inner=config["intermediate_size"],
        heads=config["num_attention_heads"],
        key_heads=config["num_key_value_heads"],
        head_size=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        words=config["vocab_size"],
        tied=bool(config["tie_word_embeddings"]),
        parameters=sum(math.prod(shape) for shape in shapes),
    )


def _header(path: Path) -> bytes:
    """Return the JSON header of a safetensors file, which follows its length (u64, little-endian)."""
    with path.open("rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))


def run_one(base: Path, recipe: ResolvedRecipe, lengths: list[int]) -> dict[str, Any]:
    """Train once in a process of its own, and return its figures."""
    task = {
        "base": str(base),
        "recipe": recipe.model_dump(mode="json"),
        "lengths": lengths,
        "shared": SHARED,
        "answer": ANSWER,
    }
    command = [sys.executable, "-m", "scripts.benches.plan_worker", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"bench: training by {recipe.method} failed: {done.stderr[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
