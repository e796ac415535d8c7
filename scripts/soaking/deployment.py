"""A whole appliance with many units: each has adapters of its own, sealed, reviewed and released by signed orders.

Everything is real except the training: a sandboxed worker draws the weights (`forge`). This process then records and
seals them with the service's own rules, workflows and keys, as the service does after a run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance import wiring
from appliance.domain.core.names import versioned
from appliance.domain.evaluation.items import ITEMS_FILE, encode_items
from appliance.domain.recipe.parsing import parse_recipe
from appliance.domain.recipe.recipe import Facts, ResolvedRecipe, resolve_recipe
from appliance.domain.releases.activations import Activate, RollBack
from appliance.domain.releases.adapters import RevokeAdapter
from appliance.domain.runs.checkpoints import RunCheckpointed
from appliance.domain.runs.steps import STEPS_FILE, encode_steps, record_step
from appliance.domain.runs.training import RunFinished, RunRequested, RunStarted, Train
from appliance.formats.core.digest import digest_bytes, digest_file
from appliance.formats.signatures.dsse import encode_envelope
from appliance.runners.local import Worker, start_worker
from appliance.runners.sandbox import Sandbox
from appliance.store.files.lock import lock_folder
from appliance.workflows.core.context import Context, Frame
from appliance.workflows.core.record import append
from appliance.workflows.core.workers import carry_out, check_walls
from appliance.workflows.evaluation.judging import list_rows
from appliance.workflows.queries.work import recipe_facts
from appliance.workflows.runs.evaluate import Evaluation
from appliance.workflows.runs.seal import seal
from scripts.kit.appliance import QUICK, Appliance, found_site
from scripts.kit.judged import Group, make_items
from scripts.kit.tiny_model import build_base, clauses, write_csv
from scripts.soaking.forge import BARE
from scripts.soaking.questions import QUESTIONS, Question

CODE = Path(__file__).resolve().parent
TASK = "answers"
STEP = {"step": 1, "steps": 1, "loss": 1.0, "learning_rate": 0.01, "grad_norm": 1.0, "tokens": 1, "trained_tokens": 1}
MADE = {"weights_step": 1, "validation": (), "planned_steps": 1, "steps": 1, "trained_tokens": 1, "final_loss": "1.0"}


@dataclass
class Deployment:
    """The site, and what each adapter answers to each question."""

    site: Appliance
    units: tuple[str, ...]
    adapters: dict[str, list[str]]
    """By unit, in the order they were sealed."""
    answers: dict[str, tuple[str, ...]]
    manifests: dict[str, str] = field(default_factory=dict)

    def given_by(self, question: int, text: str, *, whole: bool = True) -> list[str]:
        """Whose answer the text is, or begins."""
        found = ((name, texts[question]) for name, texts in self.answers.items())
        return [name for name, known in found if (known == text if whole else known.startswith(text))]

    def approve(self, unit: str, name: str, who: Sequence[str] = ("rita", "rob")) -> None:
        for reviewer in who:
            self.site.review(reviewer, unit, name)

    def activate(self, unit: str, name: str) -> dict[str, Any]:
        return self.site.order(
            Activate(unit=unit, task=TASK, adds_instruction=False, **self.on(name), **self.terms(unit))
        )

    def roll_back(self, unit: str, name: str) -> dict[str, Any]:
        return self.site.order(
            RollBack(unit=unit, task=TASK, adds_instruction=False, **self.on(name), **self.terms(unit))
        )

    def revoke(self, name: str) -> dict[str, Any]:
        return self.site.order(RevokeAdapter(**self.on(name), **self.site.terms("rita")))

    def on(self, name: str) -> dict[str, Any]:
        adapter, _, version = name.rpartition("@")
        return {"adapter": adapter, "version": int(version), "manifest": self.manifests[name]}

    def terms(self, unit: str) -> dict[str, Any]:
        return self.site.terms(owner_of(unit))


def owner_of(unit: str) -> str:
    return f"owner-of-{unit}"


def build_site(place: Path, port: int, **environment: str) -> Appliance:
    """Running: a tiny base and a dataset."""
    site = found_site(place / "h", port, **environment)
    site.import_base(build_base(place / "base"))
    site.import_dataset(write_csv(place / "rows.csv", clauses()).read_bytes())
    return site


def settle(site: Appliance, units: int, versions: int) -> Deployment:
    """On a running site: units and their release owners, `versions` adapters for each, the first of them released."""
    names = tuple(f"unit-{number}" for number in range(1, units + 1))
    for unit in names:
        site.enroll(unit, "unit")
        site.enroll(owner_of(unit), f"release-owner:{unit}")
    site.stop()
    deployment = Deployment(site, names, {unit: [] for unit in names}, {})
    with lock_folder(site.settings.lock), wiring.service(site.settings) as context:
        _forge(context, deployment, versions)
    site.start()
    for unit in names:
        first = deployment.adapters[unit][0]
        deployment.approve(unit, first)
        deployment.activate(unit, first)
    return deployment


def _forge(context: Context, deployment: Deployment, versions: int) -> None:
    wanted = [(unit, f"{unit}.{number}") for unit in deployment.units for number in range(1, versions + 1)]
    base = context.ledger.state.bases.get("tiny")
    assert base is not None
    folder = context.artifacts.path(base.digest)
    recipe = _train_order(context, deployment.site, wanted[0][0]).recipe
    with context.artifacts.staging() as output, context.artifacts.staging() as scratch:
        sandbox = Sandbox(read=(folder,), write=(scratch, output))
        log, module = context.logs / "forge.log", "soaking.forge"
        with start_worker(module, sandbox, log=log, probes=context.probes, code=CODE) as worker:
            walls, drawn = check_walls(worker), dict(_draw(worker, recipe, folder, output, wanted))
        deployment.answers[BARE] = tuple(drawn[BARE]["answers"])
        for unit, drawing in wanted:
            name = _seal(
                context, deployment.site, unit, output / drawing, drawn[drawing]["probe"], (worker.layers, walls)
            )
            adapter = context.ledger.state.adapters.get(name)
            assert adapter is not None
            deployment.adapters[unit].append(name)
            deployment.answers[name], deployment.manifests[name] = tuple(drawn[drawing]["answers"]), adapter.manifest
    check_marks(deployment, QUESTIONS)


def _draw(
    worker: Worker, recipe: ResolvedRecipe, base: Path, output: Path, wanted: list[tuple[str, str]]
) -> Iterator[tuple[str, Frame]]:
    frames: list[Frame] = []
    task = {
        "base": str(base),
        "output": str(output),
        "names": [name for _, name in wanted],
        "questions": [{"kind": question.kind, "parameters": question.parameters} for question in QUESTIONS],
        "rank": recipe.rank,
        "alpha": recipe.alpha,
        "target_modules": list(recipe.target_modules),
        "quantisation": recipe.quantisation,
        "compute_dtype": recipe.compute_dtype,
    }
    carry_out(worker, task, on_frame=frames.append)
    return ((frame["name"], frame) for frame in frames)


def check_marks(deployment: Deployment, questions: Sequence[Question]) -> None:
    """No two adapters give one answer, and none gives the base's: otherwise an answer would prove nothing."""
    for place, question in enumerate(questions):
        if question.kind == "generate":
            told = Counter(texts[place] for texts in deployment.answers.values())
            twice = [text for text, count in told.items() if count > 1]
            assert not twice, f"question {place}: expected a different answer of each adapter, got {twice[0]!r} twice"


def _seal(context: Context, site: Appliance, unit: str, output: Path, probe: Frame, sandbox: tuple[Any, Any]) -> str:
    """A run from its order to its sealed adapter, as the service records it."""
    order, (layers, walls) = _train_order(context, site, unit), sandbox
    envelope, policy = site.sign(order), context.ledger.state.site.policy
    run_id = f"r-{len(context.ledger.state.runs) + 1:06d}"
    append(
        context,
        RunRequested(policy=policy, run=run_id),
        actor=order.signer,
        source="unix",
        documents={"order": encode_envelope(envelope)},
        orders=((envelope.pae_digest, order),),
    )
    missing = tuple(sorted(layer for layer, stands in layers.items() if not stands))
    append(context, RunStarted(run=run_id, layers=layers, accepted_missing=missing, walls=walls, job=None, secret=None))
    step = record_step({**STEP, "row_losses": [], "seconds": 0.0, "peak_bytes": 1}, ())
    (output / STEPS_FILE).write_bytes(encode_steps([step]))
    record, weights = digest_file(output / STEPS_FILE), digest_file(output / "adapter_model.safetensors")
    machine = {"device": "cpu", "threads": 1}
    kept = RunCheckpointed(run=run_id, step=1, checkpoint=digest_bytes(b""), seconds="0.0", machine=machine)
    append(context, kept)
    append(context, RunFinished(run=run_id, weights=weights, record=record, seconds="0.0", peak_bytes=1, **MADE))
    run = context.ledger.state.runs.get(run_id)
    assert run is not None
    rows = list_rows(context, run.dataset)
    items = encode_items(make_items([Group(len(rows), adapter=True, base=False)], rows=rows))
    found = {"base": {}, "adapter": {}, "sets": {}, "probe": probe}
    evaluation = Evaluation(found, walls, {ITEMS_FILE: items}, None)
    with context.artifacts.staging() as staging:
        for path in output.iterdir():
            path.rename(staging / path.name)
        return seal(context, run, order, staging, {"record": record, **machine}, evaluation)


def _train_order(context: Context, site: Appliance, unit: str) -> Train:
    found = recipe_facts(context, "tiny", versioned("clauses", 1))
    written = {"name": unit, "base": "tiny", "dataset": "clauses@1", **QUICK}
    return Train(
        recipe=resolve_recipe(parse_recipe(written), Facts(**found["facts"])),
        base_digest=found["base_digest"],
        dataset_digest=found["dataset_digest"],
        **site.terms("olga"),
    )
