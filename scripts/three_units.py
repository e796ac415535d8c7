"""The part that `scripts/demo --three-units` adds: three served models for three units on one base, and its memory
compared
with that of three full models."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "three-units"
PEOPLE_ROLES = {
    "support": ("unit", "Customer service"),
    "branches": ("unit", "The branches"),
    "sam": ("release-owner:support", "Sam Okoye"),
    "pia": ("release-owner:branches", "Pia Lund"),
}
# unit, its release owner, served model, dataset's served model, system message
SERVED_MODELS = (
    ("support", "sam", "sentiment", "classification", "Is the customer's sentence positive or negative?"),
    ("branches", "pia", "summaries", "instruction", "Summarise the note."),
)
QUESTIONS = {
    "legal": ("labels", "This Agreement shall be governed by and construed in accordance with the laws of Norway."),
    "support": ("sentiment", "The delivery took far too long."),
    "branches": ("summaries", "Summarise in one line: A teacher in Lund changed address and signed the form there."),
}
# One full model in a process of its own, loaded as a service would hold it: bfloat16, one answer given.
FULL_MODEL = """
    import sys, torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16, local_files_only=True).eval()
    words = AutoTokenizer.from_pretrained(sys.argv[1], local_files_only=True)("The parties", return_tensors="pt")
    model.generate(**words, max_new_tokens=8, do_sample=False)
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS:")))
"""


def shape_as_mistral(gguf: Path, folder: Path) -> Path:
    """Write the same weights as a publisher of Mistral would: another architecture, a window of 256 keys."""
    from appliance.ml.model.convert import convert_base
    from appliance.ml.quantised.nf4 import NF4_FILE

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    convert_base(gguf, folder)
    (folder / NF4_FILE).unlink()
    path = folder / "config.json"
    config = json.loads(path.read_bytes())
    config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 256}
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder


def show(demo: Any, home: Path) -> None:
    """Two units more, an adapter for each, and requests to all three at once."""
    for unit, owner, served_model, kind, instruction in SERVED_MODELS:
        make(demo, unit, owner, served_model, kind, instruction)
    demo.title("Three units ask at once; one engine answers each with what was approved for it")
    tokens = {unit: demo.run("token", "issue", person=unit, quiet=True, show=False).strip() for unit in QUESTIONS}
    answers: dict[str, tuple[int, dict[str, Any]]] = {}
    for _ in range(2):  # the first time each adapter is admitted and loaded
        askers = [threading.Thread(target=ask, args=(demo, tokens, unit, answers)) for unit in QUESTIONS]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
    for unit, (served_model, question) in QUESTIONS.items():
        status, body = answers[unit]
        if status != 200:
            sys.exit(f"demo: expected an answer for {unit}, got {status}: {body}")
        text = body["choices"][0]["message"]["content"]
        adapter = body["system_fingerprint"][:19]
        print(f"    {unit}, model {served_model!r}: {question}\n    -> {text!r}, by adapter {adapter}…")
    if len({body["system_fingerprint"] for _, body in answers.values()}) != len(QUESTIONS):
        sys.exit("demo: expected three adapters, got fewer")
    status, _ = demo.ask(tokens["support"], "labels", QUESTIONS["legal"][1])
    demo.prove("A unit that asks for another's served model", f"is told that there is none (HTTP {status})")
    compare(demo, home)


def ask(demo: Any, tokens: dict[str, str], unit: str, answers: dict[str, tuple[int, dict[str, Any]]]) -> None:
    answers[unit] = demo.ask(tokens[unit], *QUESTIONS[unit])


def make(demo: Any, unit: str, owner: str, served_model: str, kind: str, instruction: str) -> None:
    """Make a dataset, an adapter, two approvals and a release."""
    demo.title(
        f"The served model {served_model!r} for the unit {unit!r}: a dataset, an adapter, two approvals, a release"
    )
    words = ("--base", "smollm2", "--instruction", instruction, "--owner", unit, "--licence", "CC0-1.0")
    demo.run(
        *("dataset", "import", str(EXAMPLE / f"{served_model}.csv"), "--name", served_model, "--dataset-kind", kind),
        *(*words, "--classification", "internal"),
        person="olga",
        quiet=True,
    )
    demo.run("run", "start", str(EXAMPLE / f"{served_model}.yaml"), "--follow", person="olga", quiet=True)
    for reviewer in ("rita", "rob"):
        words = ("review", "approve", f"{served_model}@1", "--unit", unit, "--meaning", "Fit to show three units.")
        demo.run(*words, person=reviewer, quiet=True, show=False)
    demo.run(
        "release",
        "activate",
        f"{served_model}@1",
        "--unit",
        unit,
        "--served-model",
        served_model,
        person=owner,
        quiet=True,
    )


def compare(demo: Any, home: Path) -> None:
    demo.title("What it holds in memory")
    worker = resident_kib("appliance.worker.serve")
    bases = json.loads(demo.run("base", "list", "--json", person="axel", quiet=True, show=False))
    folder = home / "artifacts" / bases[0]["digest"].removeprefix("sha256:")
    command = [sys.executable, "-c", textwrap.dedent(FULL_MODEL), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"demo: expected a full model to answer, got: {done.stderr[-500:]}")
    full = 3 * int(done.stdout)
    print(f"    the serving worker, one base and three adapters     {worker / 1024:8,.0f} MiB")
    print(f"    three processes with a full model each (3 × one)    {full / 1024:8,.0f} MiB")
    demo.prove("Three served models on one base, in memory", f"{worker / full:.2f} of three full models")


def resident_kib(module: str) -> int:
    """Return the resident KiB of the process that runs the module and has the most."""
    found = [0]
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if module.encode() in (place / "cmdline").read_bytes().split(b"\0"):
                status = (place / "status").read_text().splitlines()
                found += [int(line.split()[1]) for line in status if line.startswith("VmRSS:")]
        except OSError:
            continue
    return max(found)
