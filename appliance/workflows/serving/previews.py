"""Sample views and trials, by which a reviewer examines a sealed adapter before a decision.

A sample view shows answers to held-out rows side by side; a trial shows answers to the reviewer's own prompts. A worker
computes the answers in the usual sandbox. It has the base and the adapters in memory, whose bytes were hashed and whose
logit fingerprints are compared, and ends afterwards. No unit can reach it. The answers wait in memory for the person
who ordered them and are sent once. Then an entry records the outcome: success if the whole response was sent,
interrupted if the connection ended before, failure if nobody fetched the answers in time.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from appliance.api.releases import PreviewStatus
from appliance.api.runs import WorkError
from appliance.domain.core.decisions import Preview
from appliance.domain.core.names import versioned
from appliance.domain.core.records.data import Dataset
from appliance.domain.core.records.runs import Adapter
from appliance.domain.core.roles import refuse_role
from appliance.domain.data.kinds import InstructedDataset, example_request
from appliance.domain.evaluation.basis import find_released
from appliance.domain.evaluation.gates import HELD_OUT
from appliance.domain.evaluation.rules import choose_evaluated
from appliance.domain.releases.admission import AdmissionInputs, check_bytes
from appliance.domain.releases.previews import (
    SamplesShown,
    TrialAnswer,
    TryAdapter,
    TryFinished,
    ViewSamples,
    draw_samples,
    refuse_unusable,
)
from appliance.errors import ApplianceError, BadInput, Denied, NotFound, Tampered, Unavailable
from appliance.formats.artifacts.rows import split_digests
from appliance.formats.core.canonical import parse_canonical
from appliance.formats.core.commitment import Disclosure, commit
from appliance.formats.core.fields import encode_base64
from appliance.workflows.core.context import Frame, LedgerContext, ServingContext, WorkerContext
from appliance.workflows.core.jobs import contain_defects
from appliance.workflows.core.prompts import ANSWERS_KEPT_S, Answers
from appliance.workflows.core.record import Effect, append, lease_of
from appliance.workflows.core.retry import append_with_retry
from appliance.workflows.core.workers import Bounds, carry_out, check_sandbox, worker
from appliance.workflows.data.folders import read_training_description
from appliance.workflows.data.imports import checked_base
from appliance.workflows.integrity import quarantine_adapter
from appliance.workflows.releases.exports import read_signatures

WORKER = "appliance.worker.preview"
"""Module of the worker."""
OURS, RELEASED, BASE = "adapter", "released", "base"
"""Names of the models whose answers are compared."""
BOUNDS = Bounds(wall_s=900.0, cpu_s=7_200)
"""Limits of the worker."""
SAMPLE_TOKENS = 256
"""Most tokens of an answer to a held-out row."""
Sent = TypeVar("Sent")
_WEIGHTS, _CONFIG, _FINGERPRINT, _RECIPE = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "logit_fingerprint.json",
    "recipe.json",
)


def hold_prompts(context: ServingContext, person: str, prompts: Sequence[Disclosure]) -> int:
    """Hold a reviewer's prompts until the order that binds them arrives, and return how many are held.

    Raises:
        Denied: The person is not a reviewer.
    """
    principal = context.ledger.state.principals.get(person)
    if principal is None or not any(role.startswith("reviewer:") and principal.has(role) for role in principal.roles):
        roles = () if principal is None else principal.roles
        raise Denied(f"prompts of {person}", refusals=(refuse_role(person, roles, ("reviewer",)),))
    return context.prompts.hold(person, prompts)


def preview_status(context: WorkerContext, person: str, order: str) -> PreviewStatus:
    """Return the progress of this person's sample view or trial.

    If it has `ended` without an error, its answers wait for `deliver_answers`.

    Raises:
        NotFound: The person has no such preview.
    """
    key = preview_key(person, order)
    stream = context.progress.read_own(key, person)
    if stream is None:
        raise _no_answers_error(person, order)
    if stream.error is not None:
        context.progress.forget(key)
    return PreviewStatus(result=None, error=stream.error, ended=stream.ended)


def deliver_answers(
    context: ServingContext, person: str, order: str, render: Callable[[Answers], Sent]
) -> tuple[Sent, Callable[[bool], None]]:
    """Take the answers of a preview. Return the response that `render` makes of them, and a function that records its
    delivery.

    The caller sends the response, then calls that function once, with True if all of it was sent.

    Raises:
        NotFound: No answers wait for this person under this order, or another request took them.
        Denied: The adapter was withdrawn after the answers were computed.
    """
    found = (
        None if context.progress.read_own(preview_key(person, order), person) is None else context.answers.find(order)
    )
    if found is None:
        raise _no_answers_error(person, order)
    try:
        _check_adapter(context, found.preview)
        sent = render(found)
    except ApplianceError as error:
        if context.answers.take(order) is not None:
            _end_unsent(context, found, error)
        raise
    if context.answers.take(order) is None:
        raise _no_answers_error(person, order)
    return sent, partial(_record_delivery, context, found)


def close_unfetched(context: ServingContext) -> None:
    """End the previews whose answers nobody fetched in time."""
    for late in context.answers.take_expired():
        text = (
            f"answers of {late.preview.adapter}: expected them to be fetched within {ANSWERS_KEPT_S / 60:.0f} minutes"
        )
        _end_unsent(context, late, Unavailable(f"{text}, got nobody; order them again", code="not-fetched"))


def _end_unsent(context: ServingContext, answers: Answers, error: ApplianceError) -> None:
    """End a preview whose answers are not sent. While the ledger cannot be written, the answers wait for the next
    attempt.
    """
    try:
        append(context, make_event_without_answers(answers.preview, error.code), outcome="failure")
    except Unavailable:
        context.answers.put(answers)
        return
    _disown(context, answers.preview.order)
    context.progress.end(_key_of(answers.preview), error=WorkError(code=error.code, message=error.message))


def _no_answers_error(person: str, order: str) -> NotFound:
    return NotFound(f"preview: expected the order of one that {person} ordered, and has not read, got {order}")


def preview_key(person: str, order: str) -> str:
    """Return the key of a preview's progress stream."""
    return f"preview:{person}:{order}"


def _key_of(preview: Preview) -> str:
    return preview_key(preview.by, preview.order)


def _check_held(context: ServingContext, order: TryAdapter, _: str) -> None:
    if missing := context.prompts.missing(order.signer, order.prompts):
        raise BadInput(
            f"order {order.action}, prompts: expected all {len(order.prompts)} to be sent before it, "
            f"got {len(missing)} that are not there"
        )


def _begin(context: ServingContext, order: ViewSamples | TryAdapter, digest: str) -> None:
    prompts = context.prompts.take(order.signer, order.prompts) if isinstance(order, TryAdapter) else []
    context.progress.open(preview_key(order.signer, digest), order.signer)
    context.previews.put(partial(compute_answers, context, digest, order, prompts))


def compute_answers(
    context: ServingContext, digest: str, order: ViewSamples | TryAdapter, prompts: Sequence[Disclosure]
) -> None:
    """Compute the answers, which then wait for their person.

    A failure is recorded by its code alone, because its message may quote a prompt.
    """
    preview = context.ledger.state.previews.get(digest)
    if preview is None or context.closing.is_set():
        _disown(context, digest)
        return
    try:
        with contain_defects("preview"):
            event, result = (
                _show_samples(context, preview, order)
                if isinstance(order, ViewSamples)
                else _try(context, preview, order, prompts)
            )
    except ApplianceError as error:
        if not context.closing.is_set():
            _fail(context, preview, error)
        else:
            _disown(context, digest)
        return
    context.answers.put(Answers(preview, event, result, tuple(prompts)))
    context.progress.end(_key_of(preview))


def _record_delivery(context: WorkerContext, answers: Answers, is_whole: bool) -> None:
    """Record that the person received the answers, or that the connection ended before all were sent."""
    preview = answers.preview
    try:
        if is_whole:
            try:
                append_with_retry(context, answers.event)
                return
            except Denied:
                pass  # the adapter was withdrawn while the response was sent
        append_with_retry(context, make_event_without_answers(preview, "not-delivered"), outcome="interrupted")
    finally:
        _disown(context, preview.order)
        context.progress.forget(_key_of(preview))


def _fail(context: WorkerContext, preview: Preview, error: ApplianceError) -> None:
    """End a preview without answers."""
    try:
        append_with_retry(context, make_event_without_answers(preview, error.code), outcome="failure")
    finally:
        _disown(context, preview.order)
    context.progress.end(_key_of(preview), error=WorkError(code=error.code, message=error.message))


def make_event_without_answers(preview: Preview, code: str) -> SamplesShown | TryFinished:
    """Return the event of a preview that ends without answers."""
    ended: dict[str, Any] = {"order": preview.order, "adapter": preview.adapter, "by": preview.by, "code": code}
    return (
        SamplesShown(**ended, rows=0, released=None) if preview.kind == "samples" else TryFinished(**ended, answers=())
    )


def _disown(context: LedgerContext, order: str) -> None:
    with suppress(Unavailable):
        context.processes.release_lease(lease_of(order))


# --- samples ----------------------------------------------------------------------------------------------------------


def _show_samples(context: WorkerContext, preview: Preview, order: ViewSamples) -> tuple[SamplesShown, dict[str, Any]]:
    state = context.ledger.state
    adapter = _check_adapter(context, preview)
    root = context.ledger.root_at(adapter.index + 1)
    rows = draw_samples(adapter.manifest, root, _read_held_out_rows(context, adapter), order.count)
    teaching = read_training_description(context, _check_dataset(context, adapter))
    questions = [
        {"rendered": _render_prompt(row), "labels": list(teaching.about.labels), "max_tokens": SAMPLE_TOKENS}
        for _, row in rows
    ]
    other = find_released(state, adapter.name, adapter.dataset, adapter.base_digest)
    released, why = (
        (None, None) if other is None or other.index == adapter.index else _find_comparable(context, adapter, other)
    )
    answers = _ask(context, preview, adapter, released, questions)
    name = None if released is None else versioned(released.name, released.version)
    event = SamplesShown(
        order=preview.order, adapter=preview.adapter, by=preview.by, code=None, rows=len(rows), released=name
    )
    shown = [
        {"row": digest, "text": row["text"], "expected": row["answer"], "answers": found}
        for (digest, row), found in zip(rows, answers, strict=True)
    ]
    result = {"adapter": preview.adapter, "released": name, "released_missing": why, "root": root.hex(), "rows": shown}
    return event, result


def _find_comparable(context: LedgerContext, adapter: Adapter, other: Adapter) -> tuple[Adapter | None, str | None]:
    """Return the released version if it uses the same base in the same form, else the reason why it cannot be
    compared.

    On another base the rows would be rendered differently.
    """
    ours, theirs = (parse_canonical(context.artifacts.read(one.manifest, _RECIPE)) for one in (adapter, other))
    same = all(ours.get(name) == theirs.get(name) for name in ("quantisation", "compute_dtype"))
    if same and other.base_digest == adapter.base_digest:
        return other, None
    return None, f"{other.name}@{other.version}, which serves now, is on another base, or in another form of it"


def _read_held_out_rows(context: LedgerContext, adapter: Adapter) -> list[tuple[str, dict[str, Any]]]:
    """Return the rows on which the adapter was evaluated, each with its keyed digest, in the dataset's order."""
    dataset = _check_dataset(context, adapter)
    digests = split_digests(context.artifacts.read(dataset.digest, "row_digests.bin"))
    lines = context.artifacts.read(dataset.digest, "rows.jsonl").splitlines()
    if len(lines) != len(digests):
        raise Tampered(
            f"dataset {adapter.dataset}: expected a digest for each of {len(lines)} rows, got {len(digests)}"
        )
    rows = [(digest.hex(), json.loads(line)) for digest, line in zip(digests, lines, strict=True)]
    held_out = [row for row in rows if row[1]["split"] == HELD_OUT]
    return choose_evaluated(str(dataset.facts.get("dataset_kind")), held_out, lambda row: "calls" in row[1])


def _render_prompt(row: dict[str, Any]) -> str:
    """Return the text before the row's last answer, or for a row with tools before the answer whose calls are
    compared.
    """
    *before, (last, _) = row["parts"][: row.get("calls", len(row["parts"])) + 1]
    return "".join(text for part in before for text in part) + str(last)


def _check_dataset(context: LedgerContext, adapter: Adapter) -> Dataset:
    dataset = context.ledger.state.datasets.require(adapter.dataset)
    context.artifacts.check(dataset.digest)
    return dataset


# --- trials -----------------------------------------------------------------------------------------------------------


def _try(
    context: WorkerContext, preview: Preview, order: TryAdapter, prompts: Sequence[Disclosure]
) -> tuple[TryFinished, dict[str, Any]]:
    adapter = _check_adapter(context, preview)
    teaching = read_training_description(context, _check_dataset(context, adapter))
    if order.adds_instruction and teaching.instruction is None:
        raise Denied("try: expected the dataset's instruction, got one that was erased", code="instruction-erased")
    questions = [_build_question(teaching, order, prompt.text) for prompt in prompts]
    found = [
        next(one for one in answers if one["model"] == OURS)
        for answers in _ask(context, preview, adapter, None, questions)
    ]
    for number, answer in enumerate(found):
        if answer["code"] is not None:
            raise Unavailable(f"prompt {number + 1}: expected an answer, got {answer['code']}", code=answer["code"])
    salts = [secrets.token_bytes(32) for _ in found]
    event = TryFinished(
        order=preview.order,
        adapter=preview.adapter,
        by=preview.by,
        code=None,
        answers=tuple(
            TrialAnswer(
                answer=commit(one["text"], salt),
                completion_tokens=one["completion_tokens"],
                finish_reason=one["finish_reason"],
                prompt_tokens=one["prompt_tokens"],
            )
            for one, salt in zip(found, salts, strict=True)
        ),
    )
    answers = [{**one, "salt": encode_base64(salt)} for one, salt in zip(found, salts, strict=True)]
    return event, {"adapter": preview.adapter, "answers": answers}


def _build_question(teaching: InstructedDataset, order: TryAdapter, prompt: str) -> Frame:
    """Return the question in the form of a unit's request for the dataset's kind of rows, with greedy decoding."""
    body = example_request("", teaching, added=not order.adds_instruction)["body"]
    limits = {"max_tokens": order.max_tokens, "temperature": 0, "labels": list(body.get("labels", ()))}
    if "prompt" in body:
        return {**limits, "prompt": prompt}
    system = [message for message in body["messages"] if message["role"] == "system"]
    return {**limits, "messages": [*system, {"role": "user", "content": prompt}]}


# --- the worker -------------------------------------------------------------------------------------------------------


def _check_adapter(context: LedgerContext, preview: Preview) -> Adapter:
    adapter = context.ledger.state.adapters.require(preview.adapter)
    if reasons := refuse_unusable(context.ledger.state, adapter):
        raise Denied(f"preview of {preview.adapter}", refusals=reasons)
    return adapter


def _read_checked(context: LedgerContext, adapter: Adapter) -> dict[str, bytes]:
    """Return every file of the adapter, hashed. An adapter whose bytes changed is quarantined, as at admission.

    Raises:
        Tampered: The bytes have changed.
    """
    try:
        files = context.artifacts.read_folder(adapter.manifest)
        signatures = read_signatures(context.artifacts, context.ledger.state.site, adapter)
        check_bytes(context.ledger.state, adapter, AdmissionInputs(files, signatures, {}, b""))
    except Unavailable:
        raise
    except ApplianceError as error:
        quarantine_adapter(context, adapter, f"preview: {error.message}")
        raise Tampered(f"adapter {adapter.name}@{adapter.version}: expected its sealed bytes, got others") from None
    return files


def _ask(
    context: WorkerContext, preview: Preview, adapter: Adapter, released: Adapter | None, questions: Sequence[Frame]
) -> list[list[dict[str, Any]]]:
    """Return the answers of each model by question.

    The models are the adapter, the released version if there is one, and for samples the base.
    """
    models = {OURS: adapter, **({} if released is None else {RELEASED: released})}
    folders = {name: _read_checked(context, one) for name, one in models.items()}
    recipe = parse_canonical(folders[OURS][_RECIPE])
    models_to_ask = [*models, *([BASE] if preview.kind == "samples" else [])]
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
                "logit_fingerprint": parse_canonical(files[_FINGERPRINT]),
                "bytes": len(files[_WEIGHTS]),
            }
            for name, files in folders.items()
        ],
        "models": models_to_ask,
        "questions": list(questions),
    }
    found: dict[tuple[int, str], dict[str, Any]] = {}
    key, gpu = f"preview-{preview.order[7:23]}", context.device == "cuda"
    with worker(context, key, WORKER, read=(base,), gpu=gpu, cpu_s=BOUNDS.cpu_s) as started:
        check_sandbox(started)
        blob = b"".join(files[_WEIGHTS] for files in folders.values())
        carry_out(
            started,
            task,
            blob,
            bounds=BOUNDS,
            on_frame=lambda frame: _store_answer(frame, models_to_ask, len(questions), found),
        )
    try:
        return [[found[number, model] for model in models_to_ask] for number in range(len(questions))]
    except KeyError as error:
        raise Unavailable(f"preview: expected an answer to each question, got none for {error}") from None


def _store_answer(
    frame: Frame, models_to_ask: Sequence[str], count: int, found: dict[tuple[int, str], dict[str, Any]]
) -> None:
    """Check a worker's answer and store it. The worker is not trusted, so every field is checked."""
    model, number = frame.get("model"), frame.get("question")
    if (
        frame.get("frame") != "answer"
        or model not in models_to_ask
        or type(number) is not int
        or not 0 <= number < count
    ):
        raise BadInput("preview, frame: expected an answer to a question that was put, got another frame")
    kinds: dict[str, type] = {"text": str, "finish_reason": str, "prompt_tokens": int, "completion_tokens": int}
    code = frame.get("code")
    answer: dict[str, Any] = {"model": model, "code": None if code is None else str(code)[:64]}
    for name, kind in kinds.items():
        value = frame.get(name)
        if code is None and type(value) is not kind:
            raise BadInput(f"preview, answer, {name}: expected {kind.__name__}, got {type(value).__name__}")
        answer[name] = value if code is None else None
    probability = frame.get("probability")
    answer["probability"] = probability if isinstance(probability, str) else None
    found[number, str(model)] = answer


EFFECTS = (
    Effect(ViewSamples, start=_begin, local=True),
    Effect(TryAdapter, ready=_check_held, start=_begin, local=True),
)
