"""The command behind `scripts/gpu`, in the environment that it chose."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scripts.benches.measure import Row, plain_table
from scripts.benches.programs import ROOT

FAILED, NO_CARD = 1, 7
TESTS = "tests/gpu"
WHAT = ["tests", "train", "serve"]
_CARD = """
import json, torch
found = {"torch": torch.__version__, "cuda": torch.version.cuda, "card": None}
if torch.cuda.is_available():
    one = torch.cuda.get_device_properties(0)
    found |= {"card": one.name, "memory_bytes": one.total_memory, "capability": [one.major, one.minor]}
    found["cards"] = torch.cuda.device_count()
print(json.dumps(found))
"""


def find_card() -> dict[str, Any]:
    """Describe the card and torch in a process that ends, since it takes some of the card's memory."""
    done = subprocess.run([sys.executable, "-c", _CARD], capture_output=True, text=True, check=True, timeout=300)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> int:
    given, rest = _parser().parse_known_args()
    if rest and (given.what != "tests" or given.dry_run):
        _parser().error(f"unrecognised arguments: {' '.join(rest)}")
    card = find_card()
    if given.dry_run:
        return _dry_run(given, card)
    if card["card"] is None:
        print(f"gpu: no card: torch {card['torch']} (CUDA {card['cuda']}) sees none", file=sys.stderr)
        return NO_CARD
    print(f"gpu: {card['card']}, torch {card['torch']}, CUDA {card['cuda']}", file=sys.stderr)
    if given.what == "tests":
        return run_tests(["-m", "gpu", *rest])
    wanted = [given.what] if given.what else WHAT
    status = 0
    for what in wanted:
        if what == "tests":
            status = run_tests(["-m", "gpu"])
        else:
            status = _bench(what, given, given.model, "cuda", card) or status
    return status


def run_tests(options: Sequence[str], device: str = "cuda") -> int:
    """0 where all passed, else 1."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--timeout=300", TESTS, *options]
    environment = {**os.environ, "GPU_TESTS_DEVICE": device}
    return FAILED if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode else 0


def _dry_run(given: argparse.Namespace, card: dict[str, Any]) -> int:
    """Run the tests and both benches on the CPU with tiny models: all lines except the card's own."""
    print(f"gpu: a dry run on the CPU, torch {card['torch']}; its numbers say nothing about a card", file=sys.stderr)
    status = 0
    for what in [given.what] if given.what else WHAT:
        if what == "tests":
            status = run_tests(["-m", "gpu", "-q"], "cpu")
        else:
            status = _bench(what, given, "tiny", "cpu", {**card, "card": None}) or status
    return status


def _bench(what: str, given: argparse.Namespace, model: str, device: str, card: dict[str, Any]) -> int:
    path = given.json or Path(f"gpu-{what}-{model}.json")
    rows: list[Row] = []
    try:
        with tempfile.TemporaryDirectory(prefix="appliance-gpu-", dir=given.folder) as name:
            for one in _measure(what, Path(name), model, device):
                rows.append(one)
    except RuntimeError as error:
        print(f"gpu: error: {what}, {model}: {error}", file=sys.stderr)
        return FAILED
    about = {"bench": what, "model": model, "device": device, **card}
    path.write_text(json.dumps({**about, "rows": [asdict(one) for one in rows]}, indent=1) + "\n", encoding="utf-8")
    shown = card["card"] or "no card, a dry run on the CPU"
    print(f"{shown}; torch {card['torch']}; model {model}\n\n{plain_table(rows)}\n\nwritten to {path}", flush=True)
    return 0


def _measure(what: str, folder: Path, model: str, device: str) -> Iterator[Row]:
    # What imports torch comes when it is needed: the help and a machine without a card need none of it.
    from scripts.gpu_machine.benches import SIZES, measure_serving, measure_training
    from scripts.gpu_machine.model import make_base

    base = make_base(folder / "base", model, device)
    return (measure_training if what == "train" else measure_serving)(base, folder, SIZES[model], device)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/gpu", description="What needs a card; scripts/gpu --help says more.")
    parser.add_argument("what", nargs="?", choices=WHAT, help="one of them; default: all")
    parser.add_argument("--model", choices=["1b", "8b"], default="1b", help="train, serve: parameters of the model")
    parser.add_argument("--json", metavar="FILE", type=Path, help="train, serve: where the rows are written")
    parser.add_argument("--folder", metavar="DIR", type=Path, help="where the model is made (default: temp files)")
    parser.add_argument("--dry-run", action="store_true", help="without a card: a tiny model on the CPU")
    return parser


if __name__ == "__main__":
    sys.exit(main())
