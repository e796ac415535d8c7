"""A reviewer looks at a sealed adapter: samples of held-out rows side by side, and prompts of their own.

The answers are computed when they are asked for, in a worker of their own behind the same walls as every worker. It
starts for the look, has the base and the adapters in memory, whose bytes were hashed and whose probes are compared, and
ends after it; no unit can reach it. What was answered leaves only once its end is an entry, to the person who ordered
it, once; nothing of it is kept.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from appliance.domain.core.decisions import Look
from appliance.domain.core.names import versioned
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.records.data import Dataset
from appliance.domain.core.signatures import Accepted
from appliance.domain.data.teaching import Teaching, example_request
from appliance.domain.evaluation.basis import find_released
from appliance.domain.evaluation.gates import HELD_OUT
from appliance.domain.evaluation.judging import choose_judged
from appliance.domain.releases.admission import AdmissionInputs, check_bytes
from appliance.domain.releases.looks import (
    SamplesShown,
    TriedAnswer,
    TryAdapter,
    TryFinished,
    ViewSamples,
    draw_samples,
    usable,
)
from appliance.errors import ApplianceError, BadInput, Denied, NotFound, Tampered, Unavailable
from appliance.formats.artifacts.rows import split_digests
from appliance.formats.core.canonical import parse_canonical
from appliance.formats.core.commitment import Disclosure, commit
from appliance.formats.core.fields import encode_base64
from appliance.workflows.core.context import Context, Frame
from appliance.workflows.core.defects import contain_defects
from appliance.workflows.core.effects import Effect, lease_of
from appliance.workflows.core.retry import append_with_retry
from appliance.workflows.core.workers import Bounds, carry_out, check_walls, worker
from appliance.workflows.data.imports import checked_base
from appliance.workflows.data.teaching import read_teaching
from appliance.workflows.integrity.quarantine import quarantine_adapter

WORKER = "appliance.worker.look"
OURS, RELEASED, BASE = "adapter", "released", "base"
BOUNDS = Bounds(wall_s=900.0, cpu_s=7_200)
SAMPLE_TOKENS = 256
_WEIGHTS, _CONFIG, _PROBE, _RECIPE = "adapter_model.safetensors", "adapter_config.json", "probe.json", "recipe.json"


def hold_prompts(context: Context, person: str, prompts: Sequence[Disclosure]) -> int:
    """Before the order that binds them; a reviewer's, and no one else's."""
    principal = context.ledger.state.principals.get(person)
    if principal is None or not any(role.startswith("reviewer:") and principal.has(role) for role in principal.roles):
        raise Denied(f"prompts: expected a reviewer, got {person}")
    return context.prompts.hold(person, prompts)


def look_status(context: Context, person: str, order: str) -> dict[str, Any]:
    """How a look went, to who ordered it: the answers once, then they are gone."""
    key = look_key(person, order)
    stream = context.progress.read_own(key, person)
    if stream is None:
        raise NotFound(f"look: expected the order of one that {person} ordered, and has not read, got {order}")
    if stream.ended:
        context.progress.forget(key)
    return {"result": stream.result, "error": stream.error, "ended": stream.ended}


def look_key(person: str, order: str) -> str:
    return f"look:{person}:{order}"


def _check_held(context: Context, order: TryAdapter) -> None:
    if missing := context.prompts.missing(order.signer, order.prompts):
        raise BadInput(
            f"order {order.verb}, prompts: expected all {len(order.prompts)} to be sent before it, "
            f"got {len(missing)} that are not there"
        )


def _begin(context: Context, accepted: Accepted) -> None:
    order = accepted.order
    assert isinstance(order, ViewSamples | TryAdapter)
    prompts = context.prompts.take(order.signer, order.prompts) if isinstance(order, TryAdapter) else []
    context.progress.open(look_key(order.signer, accepted.digest), order.signer)
    context.looks.put(partial(carry_through, context, accepted.digest, order, prompts))


def carry_through(
    context: Context, digest: str, order: ViewSamples | TryAdapter, prompts: Sequence[Disclosure]
) -> None:
    try:
        _carry_through(context, digest, order, prompts)
    finally:
        with suppress(Unavailable):
            context.processes.disown(lease_of(digest))


def _carry_through(
    context: Context, digest: str, order: ViewSamples | TryAdapter, prompts: Sequence[Disclosure]
) -> None:
    """To its entry, and then its answers; a failure's code is recorded, and no message, which may quote a prompt."""
    look = context.ledger.state.looks.get(digest)
    if look is None or context.closing.is_set():
        return
    try:
        with contain_defects("look"):
            event, result = (
                _show_samples(context, look, order)
                if isinstance(order, ViewSamples)
                else _try(context, look, order, prompts)
            )
            append_with_retry(context, event)
    except ApplianceError as error:
        if not context.closing.is_set():
            _fail(context, look, error)
        return
    context.progress.end(look_key(look.by, digest), result=result)


def _fail(context: Context, look: Look, error: ApplianceError) -> None:
    over: dict[str, Any] = {"order": look.order, "adapter": look.adapter, "by": look.by, "code": error.code}
    samples = look.kind == "samples"
    body = SamplesShown(**over, rows=0, released=None) if samples else TryFinished(**over, answers=())
    append_with_retry(context, body, outcome="failure")
    context.progress.end(look_key(look.by, look.order), error={"code": error.code, "message": error.message})


# --- samples ----------------------------------------------------------------------------------------------------------


def _show_samples(context: Context, look: Look, order: ViewSamples) -> tuple[SamplesShown, dict[str, Any]]:
    state = context.ledger.state
    adapter = _adapter(context, look)
    root = context.ledger.root_at(adapter.index + 1)
    rows = draw_samples(adapter.manifest, root, _held_out_rows(context, adapter), order.count)
    teaching = read_teaching(context, _dataset(context, adapter))
    questions = [
        {"rendered": _rendered(row), "labels": list(teaching.about.labels), "max_tokens": SAMPLE_TOKENS}
        for _, row in rows
    ]
    other = find_released(state, adapter.name, adapter.dataset, adapter.base_digest)
    released, why = (
        (None, None) if other is None or other.index == adapter.index else _comparable(context, adapter, other)
    )
    answers = _ask(context, look, adapter, released, questions)
    name = None if released is None else versioned(released.name, released.version)
    event = SamplesShown(order=look.order, adapter=look.adapter, by=look.by, code=None, rows=len(rows), released=name)
    shown = [
        {"row": digest, "text": row["text"], "expected": row["answer"], "answers": found}
        for (digest, row), found in zip(rows, answers, strict=True)
    ]
    result = {"adapter": look.adapter, "released": name, "released_missing": why, "root": root.hex(), "rows": shown}
    return event, result


def _comparable(context: Context, adapter: Adapter, other: Adapter) -> tuple[Adapter | None, str | None]:
    """The released version, where it is on the same base in the same form, else why not: on another base the rows would
    be rendered otherwise."""
    ours, theirs = (parse_canonical(context.artifacts.read(one.manifest, _RECIPE)) for one in (adapter, other))
    same = all(ours.get(name) == theirs.get(name) for name in ("quantisation", "compute_dtype"))
    if same and other.base_digest == adapter.base_digest:
        return other, None
    return None, f"{other.name}@{other.version}, which answers now, is on another base, or in another form of it"


def _held_out_rows(context: Context, adapter: Adapter) -> list[tuple[str, dict[str, Any]]]:
    """Those that the adapter was judged on, each with its keyed digest, in the dataset's order."""
    dataset = _dataset(context, adapter)
    digests = split_digests(context.artifacts.read(dataset.digest, "row_digests.bin"))
    lines = context.artifacts.read(dataset.digest, "rows.jsonl").splitlines()
    if len(lines) != len(digests):
        raise Tampered(
            f"dataset {adapter.dataset}: expected a digest for each of {len(lines)} rows, got {len(digests)}"
        )
    rows = [(digest.hex(), json.loads(line)) for digest, line in zip(digests, lines, strict=True)]
    held_out = [row for row in rows if row[1]["split"] == HELD_OUT]
    return choose_judged(str(dataset.facts.get("task")), held_out, lambda row: "calls" in row[1])


def _rendered(row: dict[str, Any]) -> str:
    """What stands before the row's last answer; of a row with tools before the one that is compared by its calls."""
    *before, (last, _) = row["parts"][: row.get("calls", len(row["parts"])) + 1]
    return "".join(text for part in before for text in part) + str(last)


def _dataset(context: Context, adapter: Adapter) -> Dataset:
    dataset = context.ledger.state.datasets.get(adapter.dataset)
    if dataset is None:
        raise NotFound(f"dataset: expected an imported one, got {adapter.dataset}")
    context.artifacts.check(dataset.digest)
    return dataset


# --- tries ------------------------------------------------------------------------------------------------------------


def _try(
    context: Context, look: Look, order: TryAdapter, prompts: Sequence[Disclosure]
) -> tuple[TryFinished, dict[str, Any]]:
    adapter = _adapter(context, look)
    teaching = read_teaching(context, _dataset(context, adapter))
    if order.adds_instruction and teaching.instruction is None:
        raise Denied("try: expected the dataset's instruction, got one that was erased", code="instruction-erased")
    questions = [_question(teaching, order, prompt.text) for prompt in prompts]
    found = [
        next(one for one in answers if one["model"] == OURS)
        for answers in _ask(context, look, adapter, None, questions)
    ]
    for number, answer in enumerate(found):
        if answer["code"] is not None:
            raise Unavailable(f"prompt {number + 1}: expected an answer, got {answer['code']}", code=answer["code"])
    salts = [secrets.token_bytes(32) for _ in found]
    event = TryFinished(
        order=look.order,
        adapter=look.adapter,
        by=look.by,
        code=None,
        answers=tuple(
            TriedAnswer(
                answer=commit(one["text"], salt),
                completion_tokens=one["completion_tokens"],
                finish_reason=one["finish_reason"],
                prompt_tokens=one["prompt_tokens"],
            )
            for one, salt in zip(found, salts, strict=True)
        ),
    )
    answers = [{**one, "salt": encode_base64(salt)} for one, salt in zip(found, salts, strict=True)]
    return event, {"adapter": look.adapter, "answers": answers}


def _question(teaching: Teaching, order: TryAdapter, prompt: str) -> Frame:
    """As a unit's client would put it: the form of the dataset's rows, greedily."""
    body = example_request("", teaching, added=not order.adds_instruction)["body"]
    limits = {"max_tokens": order.max_tokens, "temperature": 0, "labels": list(body.get("labels", ()))}
    if "prompt" in body:
        return {**limits, "prompt": prompt}
    system = [message for message in body["messages"] if message["role"] == "system"]
    return {**limits, "messages": [*system, {"role": "user", "content": prompt}]}


# --- the worker -------------------------------------------------------------------------------------------------------


def _adapter(context: Context, look: Look) -> Adapter:
    adapter = context.ledger.state.adapters.get(look.adapter)
    if adapter is None:
        raise NotFound(f"adapter: expected a sealed one, got {look.adapter}")
    if reasons := usable(context.ledger.state, adapter):
        raise Denied(f"look at {look.adapter}", reasons=tuple(reasons))
    return adapter


def _read_checked(context: Context, adapter: Adapter) -> dict[str, bytes]:
    """Every file, hashed; bytes that changed are quarantined, as at admission."""
    try:
        files = context.artifacts.read_folder(adapter.manifest)
        signature = context.artifacts.read_beside(adapter.manifest, "signature.json")
        check_bytes(context.ledger.state, adapter, AdmissionInputs(files, signature, {}, b""))
    except Unavailable:
        raise
    except ApplianceError as error:
        quarantine_adapter(context, adapter, f"look: {error.message}")
        raise Tampered(f"adapter {adapter.name}@{adapter.version}: expected its sealed bytes, got others") from None
    return files


def _ask(
    context: Context, look: Look, adapter: Adapter, released: Adapter | None, questions: Sequence[Frame]
) -> list[list[dict[str, Any]]]:
    """By question the answer of each model: the adapter, the released version where there is one, and of samples the
    base."""
    models = {OURS: adapter, **({} if released is None else {RELEASED: released})}
    folders = {name: _read_checked(context, one) for name, one in models.items()}
    recipe = parse_canonical(folders[OURS][_RECIPE])
    asked = [*models, *([BASE] if look.kind == "samples" else [])]
    base = checked_base(context, adapter.base)
    task = {
        "base": str(base),
        "quantisation": recipe["quantisation"],
        "compute_dtype": recipe["compute_dtype"],
        "device": context.device,
        "adapters": [
            {
                "slot": name,
                "config": files[_CONFIG].decode("utf-8"),
                "probe": parse_canonical(files[_PROBE]),
                "bytes": len(files[_WEIGHTS]),
            }
            for name, files in folders.items()
        ],
        "models": asked,
        "questions": list(questions),
    }
    found: dict[tuple[int, str], dict[str, Any]] = {}
    key, gpu = f"look-{look.order[7:23]}", context.device == "cuda"
    with worker(context, key, WORKER, read=(base,), gpu=gpu, cpu_s=BOUNDS.cpu_s) as started:
        check_walls(started)
        blob = b"".join(files[_WEIGHTS] for files in folders.values())
        carry_out(started, task, blob, bounds=BOUNDS, on_frame=lambda frame: _take(frame, asked, len(questions), found))
    try:
        return [[found[number, model] for model in asked] for number in range(len(questions))]
    except KeyError as error:
        raise Unavailable(f"look: expected an answer to each question, got none for {error}") from None


def _take(frame: Frame, asked: Sequence[str], count: int, found: dict[tuple[int, str], dict[str, Any]]) -> None:
    """An answer, as far as it can be one; the worker is not trusted to say what it likes."""
    model, number = frame.get("model"), frame.get("question")
    if frame.get("frame") != "answer" or model not in asked or type(number) is not int or not 0 <= number < count:
        raise BadInput("look, frame: expected an answer to a question that was put, got another frame")
    kinds: dict[str, type] = {"text": str, "finish_reason": str, "prompt_tokens": int, "completion_tokens": int}
    code = frame.get("code")
    answer: dict[str, Any] = {"model": model, "code": None if code is None else str(code)[:64]}
    for name, kind in kinds.items():
        value = frame.get(name)
        if code is None and type(value) is not kind:
            raise BadInput(f"look, answer, {name}: expected {kind.__name__}, got {type(value).__name__}")
        answer[name] = value if code is None else None
    probability = frame.get("probability")
    answer["probability"] = probability if isinstance(probability, str) else None
    found[number, str(model)] = answer


EFFECTS = (
    Effect(ViewSamples, start=_begin, local=True),
    Effect(TryAdapter, ready=_check_held, start=_begin, local=True),
)
