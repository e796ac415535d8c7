"""A unit is answered: its own release, admitted and loaded, each request recorded before and after."""

from __future__ import annotations

import logging
import secrets
import threading
from contextlib import suppress
from typing import Any

from appliance.domain.core.credentials import TokenRequest
from appliance.domain.core.entry import Outcome
from appliance.domain.evaluation.engines import VLLM
from appliance.domain.queries.response import commit_prompt, derive_salt
from appliance.domain.serving.requests import (
    MOST_MESSAGE,
    RequestAdmitted,
    RequestFinished,
    RequestRefused,
    name_request,
)
from appliance.errors import ApplianceError, Conflict, Denied, NotFound, Unavailable
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.commitment import commit
from appliance.formats.core.digest import digest_bytes
from appliance.workflows.core.context import Context, Frame
from appliance.workflows.core.defects import contain_defects
from appliance.workflows.core.record import append
from appliance.workflows.governance.callers import Caller
from appliance.workflows.serving.answering import Answer, Ending, Loaded, lost, taken_out
from appliance.workflows.serving.instructions import add_instruction
from appliance.workflows.serving.response import record_response
from appliance.workflows.serving.slots import Slots
from appliance.workflows.serving.tasks import describe_task, list_tasks, no_model
from appliance.workflows.serving.tokens import Granted, issue_token

log = logging.getLogger(__name__)
DIGEST_KEY = "request-digests"


class Serving:
    """What the units' door asks of the appliance."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._slots = Slots(context)
        self._lock = threading.Lock()
        self._running: dict[str, tuple[Caller, Answer]] = {}
        """Requests under way, and by whose token."""
        self._owed: dict[str, tuple[RequestFinished, Outcome, str]] = {}
        self._key = context.keyring.read_secret(DIGEST_KEY)

    # --- what a unit sees ---------------------------------------------------------------------------------------------

    def models(self, caller: Caller) -> list[dict[str, Any]]:
        self._context.contact.check()
        return list_tasks(self._context, caller)

    def model(self, caller: Caller, task: str) -> dict[str, Any]:
        self._context.contact.check()
        return describe_task(self._context, caller, task)

    def answer(self, caller: Caller, task: str, kind: str, parameters: Frame, source: str) -> Answer:
        """Admits the request or records why not; whatever cannot be recorded is not answered.

        `kind` is `generate` or `classify`; the parameters hold `messages`, or `prompt`.
        """
        milliseconds = int(self._context.clock().timestamp() * 1000)
        request = name_request(milliseconds, secrets.token_bytes(10))
        try:
            self._check_gateway()
            self.settle()
            while (answer := self._admit_known(request, caller, task, kind, parameters, source)) is None:
                continue
        except ApplianceError as error:
            self._refuse(caller.unit, error, source)
            raise
        return answer

    def _check_gateway(self) -> None:
        """Answers come from a process with an engine, which knows the ledger of now."""
        if "units" not in self._context.roles:
            raise Unavailable(
                "answer: expected a process with the role units, got one without an engine; ask a gateway",
                code="no-engine",
            )
        self._context.contact.check()

    def _admit_known(
        self, request: str, caller: Caller, task: str, kind: str, parameters: Frame, source: str
    ) -> Answer | None:
        """Nothing is refused for what another process has changed meanwhile, such as a release of this moment."""
        try:
            return self._admit(request, caller, task, kind, parameters, source)
        except (Denied, NotFound, Conflict):
            if not self._context.refresh():
                raise
            return self._admit(request, caller, task, kind, parameters, source)

    def _admit(
        self, request: str, caller: Caller, task: str, kind: str, parameters: Frame, source: str
    ) -> Answer | None:
        """The answer, once the request is an entry; None where the slot was emptied before that: what stands now is to
        be found again."""
        if not caller.may_ask(task):
            raise no_model(caller, task)
        loaded = self._slots.find(caller.unit, task)
        parameters, instruction = add_instruction(self._context, loaded, parameters)
        loaded.enter()

        def finish(ended: Answer, ending: Ending) -> Frame:
            return self._end(ended, ending, kind, source)

        answer = Answer(request, loaded, kind, parameters, instruction, finish, self._find_scope(loaded))
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
        # Known before it is recorded: whatever is revoked from here on finds it.
        self._running[request] = (caller, answer)
        try:
            append(self._context, body, source=source)
        except ApplianceError as error:
            self._running.pop(request, None)
            loaded.leave()
            if isinstance(error, Unavailable):
                # Where the entry stands all the same, it is closed as soon as that shows.
                self._owe(self._ended(answer, Ending("", {}, "interrupted")), "interrupted", source)
            if loaded.closed is None or not isinstance(error, Denied):
                raise
            return None
        return answer

    def _find_scope(self, loaded: Loaded) -> str:
        """What the engine may share of prompts within the slot: until all tokens of the unit are revoked."""
        unit = self._context.ledger.state.principals.get(loaded.unit)
        epoch = None if unit is None else unit.tokens_since
        return digest_bytes(encode_canonical([loaded.unit, loaded.manifest, epoch]))

    def issue_token(self, request: TokenRequest, data: bytes, source: str) -> Granted:
        return issue_token(self._context, request, data, source)

    def _refuse(self, unit: str, error: ApplianceError, source: str) -> None:
        """A refusal is an entry too; where even that cannot be written the caller is refused all the same."""
        with suppress(ApplianceError):
            body = RequestRefused(unit=unit, code=error.code, message=error.message[:MOST_MESSAGE], count=1)
            append(self._context, body, source=source)

    # --- how an answer ends -------------------------------------------------------------------------------------------

    def _end(self, answer: Answer, ending: Ending, kind: str, source: str) -> Frame:
        """The slot is free for others once the end is an entry."""
        try:
            return self._finish(answer, ending, kind, source)
        finally:
            self._running.pop(answer.request, None)
            answer.loaded.leave()

    def _finish(self, answer: Answer, ending: Ending, kind: str, source: str) -> Frame:
        """Records the end, and gives the response record. Raises where an answer that came to its end cannot be told
        so: then its end is another."""
        body = self._ended(answer, ending)
        try:
            appended = append(self._context, body, source=source, outcome=ending.outcome)
        except Unavailable:
            # Its reader is not told the end, or has gone: it was interrupted, once that can be written.
            cut = self._ended(answer, Ending(ending.text, {}, "interrupted"))
            self._owe(cut, "interrupted", source)
            if ending.outcome == "success":
                raise lost() from None
            return {}
        except Denied as error:
            if ending.outcome != "success":
                log.critical("ALARM: request %s: its end is not an entry: %s", answer.request, error.message)
                return {}
            # Its slot was emptied before this could be recorded.
            cut = self._ended(answer, Ending(ending.text, {}, "failure"))
            self._owe(cut, "failure", source)
            with suppress(Unavailable):
                self.settle()
            raise Denied("answer: cut off, its adapter was taken out", code="cut-off") from error
        salts = self._salt(answer.request, "prompt"), self._salt(answer.request, "answer")
        shown = ending.text if kind == "classify" or ending.hidden else None
        added = None if answer.instruction is None else answer.instruction.salt
        return {"record": record_response(self._context.ledger, appended, *salts, shown, added)}

    def _ended(self, answer: Answer, ending: Ending) -> RequestFinished:
        return RequestFinished(
            request=answer.request,
            **answer.loaded.row.answering,
            instruction=_commitment(answer),
            finish_reason=str(ending.last.get("finish_reason", ending.outcome)),
            prompt_tokens=int(ending.last.get("prompt_tokens", 0)),
            completion_tokens=int(ending.last.get("completion_tokens", 0)),
            answer=commit(ending.text, self._salt(answer.request, "answer")),
            engine=None if self._context.vllm is None else VLLM,
        )

    def _owe(self, body: RequestFinished, outcome: Outcome, source: str) -> None:
        with self._lock:
            self._owed[body.request] = (body, outcome, source)

    def settle(self) -> None:
        """Records what could not be recorded when it happened; Unavailable while it cannot be yet."""
        for request, (body, outcome, source) in list(self._owed.items()):
            if request in self._context.ledger.state.requests:
                with suppress(Conflict, Denied):
                    append(self._context, body, source=source, outcome=outcome)
            with self._lock:
                self._owed.pop(request, None)

    def _salt(self, request: str, role: str) -> bytes:
        """The ledger has no prompt and no answer; their digests are under keys that only the unit gets and that cannot
        be guessed."""
        return derive_salt(self._key, request, role)

    # --- what keeps it right ------------------------------------------------------------------------------------------

    def reconcile(self) -> None:
        """After anything that may change what answers: what may not answer any more is taken out at once, and what is
        being answered to a token that no longer counts is cut. Neither waits for a load."""
        self._close_obsolete()
        self._slots.settle()

    def follow(self) -> None:
        """The same after entries of other processes. Only what waits for no engine is done before it returns."""
        self._close_obsolete()
        threading.Thread(target=self._settle_slots, name="emptying", daemon=True).start()

    def _settle_slots(self) -> None:
        try:
            with contain_defects("emptying of slots"):
                self._slots.settle()
        except ApplianceError as error:
            log.warning("slots: %s", error.message)

    def _close_obsolete(self) -> None:
        state = self._context.ledger.state
        for caller, answer in list(self._running.values()):
            if against := caller.against(state):
                answer.cut(against)
        self._slots.close_obsolete()
        # A worker that hangs would not say that it cut them.
        for _, answer in list(self._running.values()):
            if answer.loaded.closed is not None:
                answer.cut(taken_out(answer.loaded.closed))

    def cut_all(self, why: str) -> None:
        """No token leaves from here on of what is being answered."""
        for _, answer in list(self._running.values()):
            answer.cut(why)

    def maintain(self) -> None:
        """Once a minute: what time alone has ended is taken out, and what is owed is recorded."""
        self.reconcile()
        self.settle()

    def close(self) -> None:
        """Ends the engines; nothing answers any more."""
        self._slots.stop()


def _commitment(answer: Answer) -> str | None:
    return None if answer.instruction is None else answer.instruction.commitment
