"""Requests of units: the unit's release is admitted and loaded, and each request is recorded before and after its
answer.
"""

from __future__ import annotations

import logging
import secrets
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from appliance.domain.core.credentials import ISSUED, TokenRequest
from appliance.domain.core.entry import Outcome
from appliance.domain.core.records.serving import Release, release_key
from appliance.domain.data.kinds import InstructedDataset, example_request
from appliance.domain.evaluation.quality import VLLM
from appliance.domain.queries.proofs import ResponseRecord, commit_prompt, derive_salt
from appliance.domain.releases.approval import find_release_blockers, find_released_adapter
from appliance.domain.serving.requests import RequestAdmitted, RequestFinished, name_request
from appliance.domain.serving.tokens import TokenIssued
from appliance.errors import ApplianceError, Conflict, Denied, NotAuthenticated, NotFound, Refusal, Unavailable
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.commitment import Disclosure, commit
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import encode_base64
from appliance.formats.log.checkpoint import parse_checkpoint
from appliance.formats.log.note import parse_note
from appliance.formats.log.proof import Proof, encode_proof
from appliance.store.ledger.ledger import Ledger
from appliance.store.ledger.queue import AppendedEntry
from appliance.workflows.core.context import Frame, LedgerContext, ServingContext, Signal
from appliance.workflows.core.jobs import contain_defects
from appliance.workflows.core.record import append
from appliance.workflows.data.folders import disclosed_instruction, read_training_description
from appliance.workflows.governance import UnitCaller
from appliance.workflows.serving.answering import CUT_OFF, AnswerEnd, AnswerStream, LoadedSlot, make_lost_error
from appliance.workflows.serving.slots import Slots


def add_instruction(context: LedgerContext, loaded: LoadedSlot, parameters: Frame) -> tuple[Frame, Disclosure | None]:
    """Return the parameters for the model, and the instruction that was added as the system message, if any.

    Raises:
        Denied: The release adds the instruction and its text was erased. Without it the request would differ from those
            that the adapter was trained for.
    """
    state = context.ledger.state
    release = state.releases.get(release_key(loaded.row.unit, loaded.row.served_model))
    adapter = state.adapters.get(loaded.row.adapter)
    dataset = None if adapter is None else state.datasets.get(adapter.dataset)
    messages = parameters.get("messages")
    if release is None or dataset is None or not release.current.adds_instruction or messages is None:
        return parameters, None
    if any(message["role"] == "system" for message in messages):
        return parameters, None
    found = disclosed_instruction(context, dataset.instruction)
    if found is None:
        model = loaded.row.served_model
        message = f"instruction of {model}: expected the text that its release puts in, got one that was erased"
        raise Denied(f"{message}; send a system message of your own", code="instruction-erased")
    if not found.text:
        return parameters, None
    return {**parameters, "messages": [{"role": "system", "content": found.text}, *messages]}, found


def record_response(
    ledger: Ledger,
    finished: AppendedEntry,
    prompt_salt: bytes,
    answer_salt: bytes,
    text: str | None,
    added: bytes | None,
) -> ResponseRecord:
    """Return the response record of a finished request. `added` is the salt of the added instruction, if there is one.

    It uses the checkpoint that made the entry durable, so it needs no new signature and no lock.
    """
    size = parse_checkpoint(parse_note(finished.checkpoint).text).size
    index = finished.entry.index
    proof = Proof(index, tuple(ledger.inclusion_proof(index, size)), finished.checkpoint)
    return ResponseRecord(
        entry=finished.entry_bytes.decode(),
        proof=encode_proof(proof).decode(),
        prompt_salt=encode_base64(prompt_salt),
        answer_salt=encode_base64(answer_salt),
        instruction_salt=None if added is None else encode_base64(added),
        text=text,
    )


def list_served_models(context: LedgerContext, caller: UnitCaller) -> list[dict[str, Any]]:
    """Return the served models of the unit that can be served now. An application gets only its own."""
    unit, state = caller.unit, context.ledger.state
    now = context.now(state)
    found = []
    for release in state.releases.values():
        adapter = find_released_adapter(state, unit, release.served_model)
        if release.unit != unit or not caller.may_ask(release.served_model):
            continue
        if adapter is not None and not find_release_blockers(state, release, adapter, now):
            found.append({"id": release.served_model, "object": "model", "created": 0, "owned_by": unit})
    return found


def describe_served_model(context: LedgerContext, caller: UnitCaller, served_model: str) -> dict[str, Any]:
    """Return one of the unit's served models with the form of its requests.

    Raises:
        NotFound: The served model is not released to the unit.
    """
    state, unit = context.ledger.state, caller.unit
    release = state.releases.get(release_key(unit, served_model))
    adapter = find_released_adapter(state, unit, served_model)
    dataset = None if adapter is None else state.datasets.get(adapter.dataset)
    for model in list_served_models(context, caller):
        if model["id"] == served_model and release is not None and dataset is not None:
            return {**model, **_describe_training(release, read_training_description(context, dataset))}
    raise make_unknown_model_error(caller, served_model)


def make_unknown_model_error(caller: UnitCaller, served_model: str) -> NotFound:
    """Return the error for a served model that is not released to the caller."""
    who, may = caller.unit, ""
    if caller.application is not None:
        who, may = f"{caller.application} of {caller.unit}", f"; it was enrolled for {', '.join(caller.served_models)}"
    return NotFound(f"model: expected one released to {who}, got {served_model!r}{may}", code="model-not-found")


def _describe_training(release: Release, teaching: InstructedDataset) -> dict[str, Any]:
    """Return the training data's description for a unit. It contains no rows and no erased instruction."""
    adds = release.current.adds_instruction
    return {
        "trained_for": teaching.about.dataset_kind,
        "instruction": teaching.instruction,
        "adds_instruction": adds,
        "labels": list(teaching.about.labels),
        "example": example_request(release.served_model, teaching, added=adds),
    }


@dataclass(frozen=True)
class IssuedToken:
    """An issued token. `token` is its text, which the service does not store. `id` is its digest, its name in the
    ledger.
    """

    token: str
    id: str
    unit: str
    expires_at: str


def issue_token(context: LedgerContext, request: TokenRequest, data: bytes, source: str) -> IssuedToken:
    """Issue a token for a signed request and record it. The rules check the request again, as verifiers of the log do.

    Raises:
        Denied: The rules refuse the request.
    """
    token = f"{ISSUED}{secrets.token_urlsafe(32)}"
    digest = digest_bytes(token.encode())
    body = TokenIssued(unit=request.signer, application=request.application, token=digest)
    append(context, body, source=source, documents={"token-request": data})
    return IssuedToken(token, digest, request.signer, request.expires_at)


log = logging.getLogger(__name__)
DIGEST_KEY = "request-digests"
"""Name of the keyring's secret from which salts of prompts and answers, and the key of sessions, are derived."""


class ServingWorkflow:
    """The operations of the units' API."""

    def __init__(self, context: ServingContext) -> None:
        self._context = context
        self._slots = Slots(context)
        self._lock = threading.Lock()
        self._running: dict[str, tuple[UnitCaller, AnswerStream]] = {}
        """Requests in progress, with the caller of each."""
        self.refused = Signal[[str, ApplianceError, str | None, str | None]]()
        """Called for each refusal with the unit, the error, the application, and the served model if known."""
        self._unrecorded_ends: dict[str, tuple[RequestFinished, Outcome, str]] = {}
        self._key = context.keyring.read_secret(DIGEST_KEY)

    # --- requests ----------------------------------------------------------------------------------------------------

    def models(self, caller: UnitCaller) -> list[dict[str, Any]]:
        """Return the caller's served models in the form of OpenAI's list of models."""
        self._context.contact.check()
        return list_served_models(self._context, caller)

    def model(self, caller: UnitCaller, served_model: str) -> dict[str, Any]:
        """Return one of the caller's served models with the form of its requests."""
        self._context.contact.check()
        return describe_served_model(self._context, caller, served_model)

    def answer(self, caller: UnitCaller, served_model: str, kind: str, parameters: Frame, source: str) -> AnswerStream:
        """Admit the request, record it, and return its answer. A refusal is counted but not recorded.

        `kind` is `generate` or `classify`. The parameters have `messages` or `prompt`.
        """
        milliseconds = int(self._context.clock().timestamp() * 1000)
        request = name_request(milliseconds, secrets.token_bytes(10))
        try:
            self._check_gateway()
            self.settle()
            while (
                answer := self._admit_after_refresh(request, caller, served_model, kind, parameters, source)
            ) is None:
                continue
        except ApplianceError as error:
            is_known = release_key(caller.unit, served_model) in self._context.ledger.state.releases
            self.refused(caller.unit, error, caller.application, served_model if is_known else None)
            raise
        return answer

    def _check_gateway(self) -> None:
        """Check that this process has an engine and contact with the ledger.

        Raises:
            Unavailable: It has not.
        """
        if "units" not in self._context.roles:
            raise Unavailable(
                "answer: expected a process with the role units, got one without an engine; ask a gateway",
                code="no-engine",
            )
        self._context.contact.check()

    def _admit_after_refresh(
        self, request: str, caller: UnitCaller, served_model: str, kind: str, parameters: Frame, source: str
    ) -> AnswerStream | None:
        """Admit the request. Before a refusal, read the entries of other processes and try again, in case one of them
        allows it.
        """
        try:
            return self._admit(request, caller, served_model, kind, parameters, source)
        except (Denied, NotFound, Conflict):
            if not self._context.refresh():
                raise
            return self._admit(request, caller, served_model, kind, parameters, source)

    def _admit(
        self, request: str, caller: UnitCaller, served_model: str, kind: str, parameters: Frame, source: str
    ) -> AnswerStream | None:
        """Return the answer, once the request is an entry. Return None if the slot was closed before that; the caller
        tries again.
        """
        if not caller.may_ask(served_model):
            raise make_unknown_model_error(caller, served_model)
        loaded = self._slots.find(caller.unit, served_model)
        parameters, instruction = add_instruction(self._context, loaded, parameters)
        loaded.enter()

        def finish(ended: AnswerStream, ending: AnswerEnd) -> Frame:
            return self._end(ended, ending, kind, source)

        answer = AnswerStream(request, loaded, kind, parameters, instruction, finish, self._find_scope(loaded))
        prompt = commit_prompt(parameters, self._salt(request, "prompt"))
        body = RequestAdmitted(
            request=request,
            **loaded.row.answering,
            application=caller.application,
            token=caller.token,
            token_issued_at=caller.issued_at,
            prompt=prompt,
            instruction=_commitment(answer),
        )
        # It is registered before it is recorded, so that every later revocation finds it.
        self._running[request] = (caller, answer)
        try:
            append(self._context, body, source=source)
        except ApplianceError as error:
            self._running.pop(request, None)
            loaded.leave()
            if isinstance(error, Unavailable):
                # If the entry was committed after all, an end is recorded for it later.
                self._record_later(
                    self._make_end_event(answer, AnswerEnd("", {}, "interrupted")), "interrupted", source
                )
            if loaded.closed is None or not isinstance(error, Denied):
                raise
            return None
        return answer

    def _find_scope(self, loaded: LoadedSlot) -> str:
        """Return the scope in which the engine may share cached prompts of the slot. It changes when all tokens are
        revoked.
        """
        unit = self._context.ledger.state.principals.get(loaded.row.unit)
        epoch = None if unit is None else unit.tokens_since
        return digest_bytes(encode_canonical([loaded.row.unit, loaded.row.manifest, epoch]))

    def issue_token(self, request: TokenRequest, data: bytes, source: str) -> IssuedToken:
        """Issue a token for a signed request, record it and return it."""
        return issue_token(self._context, request, data, source)

    # --- ends of answers -------------------------------------------------------------------------------------------

    def _end(self, answer: AnswerStream, ending: AnswerEnd, kind: str, source: str) -> Frame:
        """Record the end of the answer, and free its slot afterwards."""
        try:
            return self._finish(answer, ending, kind, source)
        finally:
            self._running.pop(answer.request, None)
            answer.loaded.leave()

    def _finish(self, answer: AnswerStream, ending: AnswerEnd, kind: str, source: str) -> Frame:
        """Record the end of the answer and return the response record.

        Raises:
            Unavailable: A complete answer could not be recorded, so it is recorded as interrupted later.
            Denied: With the code `cut-off`, if an earlier entry ended the release or the token of a complete answer.
        """
        body = self._make_end_event(answer, ending)
        try:
            appended = append(self._context, body, source=source, outcome=ending.outcome)
        except Unavailable:
            # The reader does not get the end, or has left. So it is recorded as interrupted once that is possible.
            cut = self._make_end_event(answer, AnswerEnd(ending.text, {}, "interrupted"))
            self._record_later(cut, "interrupted", source)
            if ending.outcome == "success":
                raise make_lost_error() from None
            return {}
        except (Denied, NotAuthenticated) as error:
            if ending.outcome != "success":
                log.critical("ALARM: request %s: its end is not an entry: %s", answer.request, error.message)
                return {}
            # An earlier entry, perhaps of another process, ended the release or the token.
            cut = self._make_end_event(answer, AnswerEnd(ending.text, {}, "failure"))
            self._record_later(cut, "failure", source)
            with suppress(Unavailable):
                self.settle()
            why = CUT_OFF if error.refusals else f"{CUT_OFF}: {error.message}"
            raise Denied(why, refusals=error.refusals, code="cut-off") from error
        salts = self._salt(answer.request, "prompt"), self._salt(answer.request, "answer")
        shown = ending.text if kind == "classify" or ending.hidden else None
        added = None if answer.instruction is None else answer.instruction.salt
        return {"record": record_response(self._context.ledger, appended, *salts, shown, added)}

    def _make_end_event(self, answer: AnswerStream, ending: AnswerEnd) -> RequestFinished:
        return RequestFinished(
            request=answer.request,
            **answer.loaded.row.answering,
            instruction=_commitment(answer),
            finish_reason=ending.last.get("finish_reason", ending.outcome),
            prompt_tokens=int(ending.last.get("prompt_tokens", 0)),
            completion_tokens=int(ending.last.get("completion_tokens", 0)),
            answer=commit(ending.text, self._salt(answer.request, "answer")),
            engine=None if self._context.vllm is None else VLLM,
        )

    def _record_later(self, body: RequestFinished, outcome: Outcome, source: str) -> None:
        with self._lock:
            self._unrecorded_ends[body.request] = (body, outcome, source)

    def settle(self) -> None:
        """Record the ends that could not be recorded when they happened.

        Raises:
            Unavailable: The ledger cannot be written.
        """
        for request, (body, outcome, source) in list(self._unrecorded_ends.items()):
            if request in self._context.ledger.state.requests:
                with suppress(Conflict, Denied):
                    append(self._context, body, source=source, outcome=outcome)
            with self._lock:
                self._unrecorded_ends.pop(request, None)

    def _salt(self, request: str, role: str) -> bytes:
        """Return the salt of a request's prompt or answer. Only the unit gets it, so the ledger's digests cannot be
        guessed.
        """
        return derive_salt(self._key, request, role)

    # --- upkeep ------------------------------------------------------------------------------------------

    def reconcile(self) -> None:
        """Unload what may not be served any more, and cut the answers to invalid tokens. Called after any such change.

        It waits for no load.
        """
        self._close_obsolete()
        self._slots.settle()

    def follow(self) -> None:
        """Close obsolete slots after other processes appended entries. Another thread waits for the engines."""
        self._close_obsolete()
        threading.Thread(target=self._empty_closed_slots, name="emptying", daemon=True).start()

    def _empty_closed_slots(self) -> None:
        try:
            with contain_defects("emptying of slots"):
                self._slots.settle()
        except ApplianceError as error:
            log.warning("slots: %s", error.message)

    def _close_obsolete(self) -> None:
        state = self._context.ledger.state
        for caller, answer in list(self._running.values()):
            if refused := caller.refuse(state):
                answer.cut(refused)
        self._slots.close_obsolete()
        # A worker that hangs would not report that it cut them.
        for _, answer in list(self._running.values()):
            if answer.loaded.closed is not None:
                answer.cut(answer.loaded.closed)

    def cut_off_all(self, reason: Refusal) -> None:
        """Cut off all answers in progress. No token is sent after the return."""
        for _, answer in list(self._running.values()):
            answer.cut(reason)

    def maintain(self) -> None:
        """Unload what has expired and record overdue ends. Called once a minute."""
        self.reconcile()
        self.settle()

    def close(self) -> None:
        """End the engines. Nothing is served afterwards."""
        self._slots.stop()


def _commitment(answer: AnswerStream) -> str | None:
    return None if answer.instruction is None else answer.instruction.commitment
