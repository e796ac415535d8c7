"""A whole appliance with many units: each has adapters of its own, sealed, reviewed and released by signed orders.

Everything is real except the training: a sandboxed worker draws the weights (`forge`). This process then records and
seals them with the service's own rules, workflows and keys, as the service does after a run.
"""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from appliance import wiring
from appliance.domain.core.names import versioned
from appliance.domain.evaluation.items import ITEMS_FILE, encode_items
from appliance.domain.evaluation.quality import VLLM
from appliance.domain.recipe.parsing import parse_recipe
from appliance.domain.recipe.recipe import resolve_recipe
from appliance.domain.releases.activations import Activate, Rollback
from appliance.domain.releases.adapters import RevokeAdapter
from appliance.domain.runs.conditions import RunCheckpointed
from appliance.domain.runs.steps import STEPS_FILE, encode_steps, record_step
from appliance.domain.runs.training import RunFinished, RunRequested, RunStarted, Train
from appliance.formats.core.digest import digest_bytes, digest_file
from appliance.formats.signatures.dsse import encode_envelope
from appliance.sandbox.description import Sandbox
from appliance.sandbox.local import start_worker
from appliance.store.files.lock import lock_folder
from appliance.workflows.core.context import Context, Frame
from appliance.workflows.core.record import append
from appliance.workflows.core.workers import carry_out, check_sandbox
from appliance.workflows.evaluation.verdicts import list_rows
from appliance.workflows.queries.work import recipe_facts
from appliance.workflows.runs.evaluate import EvaluationResult, seal
from scripts.kit.appliance import QUICK, ROOT, Appliance, found_site
from scripts.kit.hosts import add_process, start_process
from scripts.kit.item_groups import Group, make_items
from scripts.kit.tiny_model import build_base, clauses, write_csv
from scripts.soaking.forge import BARE
from scripts.soaking.questions import QUESTIONS, Question

CODE = Path(__file__).resolve().parent
BUILTIN = "builtin"
LEAST_SHARED = 3
"""Characters that an answer of vLLM has in common with its mark, at least."""
SERVED_MODEL = "answers"
STEP = {"step": 1, "steps": 1, "loss": 1.0, "learning_rate": 0.01, "grad_norm": 1.0, "tokens": 1, "trained_tokens": 1}
MADE = {"weights_step": 1, "validation": (), "planned_steps": 1, "steps": 1, "trained_tokens": 1, "final_loss": "1.0"}


@dataclass(frozen=True)
class Gateway:
    """A process that answers units, and its engine."""

    site: Appliance
    engine: str = BUILTIN

    @property
    def name(self) -> str:
        return self.site.environment.get("APPLIANCE_PROCESS", "service")


@dataclass
class Deployment:
    """The site, its gateways, and what each adapter answers to each question. `site` takes the orders; alone it is the
    gateway too."""

    site: Appliance
    units: tuple[str, ...]
    adapters: dict[str, list[str]]
    """Adapters by unit, in the order in which they were sealed."""
    answers: dict[str, dict[str, tuple[str, ...]]]
    """Answers by engine and adapter."""
    manifests: dict[str, str] = field(default_factory=dict)
    gateways: tuple[Gateway, ...] = ()
    questions: tuple[Question, ...] = QUESTIONS

    @property
    def has_hosts(self) -> bool:
        return self.gateways[0].site is not self.site

    def given_by(self, engine: str, question: int, text: str, *, whole: bool = True) -> list[str]:
        """Return the adapters whose answer is or begins with the text.

        vLLM rounds by the other requests of a batch, so there it is the answer with the longest common beginning.
        """
        known = {name: texts[question] for name, texts in self.answers[engine].items()}
        exact = [name for name, mark in known.items() if (mark == text if whole else mark.startswith(text))]
        return exact if exact or engine == BUILTIN else find_nearest(known, text)

    def find_shares(self, engine: str, question: int, text: str) -> list[str]:
        """Return the adapters with this classification; for vLLM: those with one within a hundredth."""
        if engine == BUILTIN:
            return self.given_by(engine, question, text)
        shares = json.loads(text)
        marks = {name: json.loads(texts[question]) for name, texts in self.answers[engine].items()}
        return [
            name
            for name, mark in marks.items()
            if mark.keys() == shares.keys() and all(abs(float(mark[k]) - float(v)) < 0.01 for k, v in shares.items())
        ]

    def start(self) -> None:
        start_process(*self._sites())

    def _sites(self) -> list[Appliance]:
        """Return the process that takes the orders, then the gateways that are processes of their own."""
        return [self.site, *(one.site for one in self.gateways if one.site is not self.site)]

    def stop(self) -> None:
        for site in reversed(self._sites()):
            if site.service is not None:
                site.service.send_signal(signal.SIGCONT)
                site.stop()

    def approve(self, unit: str, name: str, who: Sequence[str] = ("rita", "rob")) -> None:
        for reviewer in who:
            self.site.review(reviewer, unit, name)

    def activate(self, unit: str, name: str) -> dict[str, Any]:
        return self.site.order(
            Activate(unit=unit, served_model=SERVED_MODEL, adds_instruction=False, **self.on(name), **self.terms(unit))
        )

    def roll_back(self, unit: str, name: str) -> dict[str, Any]:
        return self.site.order(
            Rollback(unit=unit, served_model=SERVED_MODEL, adds_instruction=False, **self.on(name), **self.terms(unit))
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


def find_nearest(known: dict[str, str], text: str) -> list[str]:
    """Return the adapters whose answer has the longest beginning in common with the text.

    Return none if that is less than three characters and less than the whole text.
    """
    shared = {
        name: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(mark, text, strict=False)))
        for name, mark in known.items()
    }
    longest = max(shared.values(), default=0)
    return [name for name, length in shared.items() if length == longest >= min(LEAST_SHARED, len(text))]


def find_vllm() -> Path:
    """Return the packages of the environment that `scripts/setup --vllm` makes."""
    found = next((ROOT / ".venv-vllm" / "lib").glob("python3*/site-packages"), None)
    if found is None:
        raise RuntimeError("vLLM: expected the environment that scripts/setup --vllm makes, .venv-vllm, got none")
    return found


def build_site(
    place: Path, port: int, *, engines: Sequence[str] = (BUILTIN,), context: int = 256, **environment: str
) -> Appliance:
    """Start a site with a tiny base, whose context has so many tokens, and a dataset."""
    site = found_site(place / "h", port, **environment)
    # vLLM's attention on the CPU takes heads of 32 and more.
    shape = {"num_attention_heads": 2} if VLLM in engines else {}
    site.import_base(build_base(place / "base", max_position_embeddings=context, **shape))
    site.import_dataset(write_csv(place / "rows.csv", clauses()).read_bytes())
    return site


def settle(
    site: Appliance,
    units: int,
    versions: int,
    *,
    engines: Sequence[str] = (BUILTIN,),
    questions: tuple[Question, ...] = QUESTIONS,
    settings: str = "",
) -> Deployment:
    """On a running site: units and their release owners, `versions` adapters for each, the first of them released.

    With one engine the site answers by itself; with more, each is that of a gateway with a home of its own, whose
    settings' file has this text.
    """
    names = tuple(f"unit-{number}" for number in range(1, units + 1))
    for unit in names:
        site.enrol(unit, "unit")
        site.enrol(owner_of(unit), f"release-owner:{unit}")
    site.stop()
    deployment = Deployment(site, names, {unit: [] for unit in names}, {}, questions=questions)
    with lock_folder(site.settings.lock), wiring.service(site.settings) as context:
        _forge(context, deployment, versions, VLLM in engines)
    deployment.gateways = tuple(_add_gateways(site, engines))
    for gateway in deployment.gateways if settings else ():
        (gateway.site.home / "appliance.toml").write_text(settings)
    deployment.start()
    for unit in names:
        first = deployment.adapters[unit][0]
        deployment.approve(unit, first)
        deployment.activate(unit, first)
    return deployment


def _add_gateways(site: Appliance, engines: Sequence[str]) -> Iterator[Gateway]:
    settings = {BUILTIN: {}, VLLM: {}}
    if VLLM in engines:
        settings[VLLM] = {"APPLIANCE_ENGINE": VLLM, "APPLIANCE_VLLM_PACKAGES": str(find_vllm())}
    if len(engines) == 1:
        site.environment |= settings[engines[0]]
        yield Gateway(site, engines[0])
        return
    site.environment |= {"APPLIANCE_PROCESS": "desk", "APPLIANCE_ROLES": "people, runs"}
    for number, engine in enumerate(engines, 1):
        yield Gateway(add_process(site, f"gateway-{number}", "units", **settings[engine]), engine)


def _forge(context: Context, deployment: Deployment, versions: int, also_vllm: bool) -> None:
    questions = deployment.questions
    wanted = [(unit, f"{unit}.{number}") for unit in deployment.units for number in range(1, versions + 1)]
    base = context.ledger.state.bases.get("tiny")
    assert base is not None
    folder = context.artifacts.path(base.digest)
    # In bfloat16 the requests beside an answer of vLLM would decide its near ties.
    # All rows are in one step, as MADE says.
    written = QUICK | {"gradient_accumulation_steps": 4} | ({"compute_dtype": "float32"} if also_vllm else {})
    recipe = _train_order(context, deployment.site, wanted[0][0], written).recipe
    task = {
        "base": str(folder),
        "names": [name for _, name in wanted],
        "questions": [{"kind": question.kind, "parameters": question.parameters} for question in questions],
        "rank": recipe.rank,
        "alpha": recipe.alpha,
        "target_modules": list(recipe.target_modules),
        "quantisation": recipe.quantisation,
        "compute_dtype": recipe.compute_dtype,
    }
    with context.artifacts.staging() as output, context.artifacts.staging() as scratch:
        sandbox = Sandbox(read=(folder,), write=(scratch, output))
        drawn, made = _carry_out(context, "forge", sandbox, {**task, "output": str(output)})
        deployment.answers[BUILTIN] = {name: tuple(frame["answers"]) for name, frame in drawn.items()}
        probes, evaluated = {name: frame["logit_fingerprint"] for name, frame in drawn.items() if name != BARE}, {}
        if also_vllm:
            packages = find_vllm()
            sandbox = Sandbox(read=(folder, output), write=(scratch,), libraries=(packages,))
            more = {"adapters": str(output), "packages": str(packages), "probes": probes}
            evaluated, _ = _carry_out(context, "forge_vllm", sandbox, {**task, **more})
            probes = {name: probe for name, probe in probes.items() if evaluated[name]["answers"] or not questions}
            deployment.answers[VLLM] = {}
        for unit, drawing in wanted:
            if drawing not in probes:
                continue
            found = {"logit_fingerprint": probes[drawing]}
            if also_vllm:
                found["engines"] = {VLLM: evaluated[drawing]["evaluated"]}
            order = _train_order(context, deployment.site, unit, written)
            name = _seal(context, deployment.site, order, output / drawing, found, made)
            adapter = context.ledger.state.adapters.get(name)
            assert adapter is not None
            deployment.adapters[unit].append(name)
            deployment.manifests[name] = adapter.manifest
            deployment.answers[BUILTIN][name] = deployment.answers[BUILTIN].pop(drawing)
            if also_vllm:
                deployment.answers[VLLM][name] = tuple(evaluated[drawing]["answers"])
    check_marks(deployment)


def _carry_out(
    context: Context, module: str, sandbox: Sandbox, task: Frame
) -> tuple[dict[str, Frame], tuple[dict[str, bool], dict[str, str]]]:
    """Return the frame that a worker of ours sent, by adapter, and the worker's layers and probes."""
    frames: list[Frame] = []
    started = start_worker(
        f"soaking.{module}", sandbox, log=context.logs / f"{module}.log", probes=context.probes, code=CODE
    )
    with started as worker:
        made = worker.layers, check_sandbox(worker)
        carry_out(worker, task, on_frame=frames.append)
    return {frame["name"]: frame for frame in frames}, made


def check_marks(deployment: Deployment) -> None:
    """No two adapters give one answer, and none gives the base's: otherwise an answer would prove nothing."""
    for engine, answers in deployment.answers.items():
        for place, question in enumerate(deployment.questions):
            if question.kind == "generate":
                told = Counter(texts[place] for texts in answers.values())
                twice = [text for text, count in told.items() if count > 1]
                assert not twice, f"{engine}, question {place}: expected different answers, got {twice[0]!r} twice"


def _seal(
    context: Context,
    site: Appliance,
    order: Train,
    output: Path,
    measured: dict[str, Any],
    sandbox: tuple[dict[str, bool], dict[str, str]],
) -> str:
    """Record a run from its order to its sealed adapter, as the service does."""
    layers, probes = sandbox
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
    append(
        context,
        RunStarted(run=run_id, layers=layers, accepted_missing=missing, sandbox_probes=probes, job=None, secret=None),
    )
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
    found = {"base": {}, "adapter": {}, "sets": {}, **measured}
    evaluation = EvaluationResult(found, probes, {ITEMS_FILE: items}, None)
    with context.artifacts.staging() as staging:
        for path in output.iterdir():
            path.rename(staging / path.name)
        return seal(context, run, order, staging, {"record": record, **machine}, evaluation)


def _train_order(context: Context, site: Appliance, unit: str, recipe: dict[str, Any]) -> Train:
    found = recipe_facts(context, "tiny", versioned("clauses", 1))
    written = {"name": unit, "base": "tiny", "dataset": "clauses@1", **recipe}
    return Train(
        recipe=resolve_recipe(parse_recipe(written), found.facts),
        base_digest=found.base_digest,
        dataset_digest=found.dataset_digest,
        **site.terms("olga"),
    )
