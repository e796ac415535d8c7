"""Every stable error code in words, and the search for those that the code raises.

`docs/reference/errors.md` is written from `CODES`. A test compares the table with `find_codes`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from appliance import errors
from appliance.errors import (
    ApplianceError,
    BadInput,
    Conflict,
    Denied,
    NotAuthenticated,
    NotFound,
    QuotaExceeded,
    RateLimited,
    Tampered,
    TooLarge,
    Unavailable,
)

_CODE = re.compile(r"[a-z][a-z0-9-]*")
APPLIANCE = Path(errors.__file__).parent
BRANCHES: dict[str, type[ApplianceError]] = {
    name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, ApplianceError)
}


class Code(NamedTuple):
    """The meaning of a code, the action, and the classes that carry it, with their exit codes and HTTP statuses."""

    branches: tuple[type[ApplianceError], ...]
    meaning: str
    action: str


GENERAL: dict[str, Code] = {
    "error": Code((ApplianceError,), "a defect of the appliance", "report it, with the service's log"),
    "bad-input": Code((BadInput,), "a value or a file is wrong", "correct what the message names"),
    "too-large": Code((TooLarge,), "the input is over a limit", "send less; the message names the limit"),
    "not-authenticated": Code(
        (NotAuthenticated,), "no key, session or token that counts", "log in, or get a new token"
    ),
    "denied": Code((Denied,), "you may not do this", "read the reasons; each names a rule"),
    "not-found": Code((NotFound,), "there is no such thing, as far as you may know", "correct the name"),
    "conflict": Code((Conflict,), "it was done already, or the thing is in another state", "look at its state first"),
    "tampered": Code((Tampered,), "bytes, a signature or the history do not hold", "stop, and call an auditor"),
    "unavailable": Code((Unavailable,), "the machine, the database or the sandbox is not available now", "try again"),
    "quota-exceeded": Code((QuotaExceeded,), "what was allowed for a time is used up", "ask again after it"),
    "rate-limited": Code((RateLimited,), "the appliance's rate limit is reached", "wait as long as `Retry-After` says"),
}
"""The code of each class, where nothing more precise is known."""

COMMAND_LINE = {
    "usage": Code((BadInput,), "the command line itself is wrong", "type the command with `--help`"),
    "defect": Code(
        (ApplianceError, Denied),
        "an unforeseen error in the command, in a job, or in the decision of an order",
        "report it, with `APPLIANCE_DEBUG=1` or the service's log",
    ),
    "failed": Code((Tampered,), "`ledger verify` has findings", "stop, and call an auditor"),
    "unverifiable": Code((Unavailable,), "`ledger verify` could not check everything", "the report names what"),
    "replay-differs": Code((Tampered,), "a replay did not come to the recorded training checkpoint", "call an auditor"),
    "not-evaluated": Code(
        (Unavailable,), "there is no verdict: not sealed, or no gates", "`gate check` ends with 9 then"
    ),
    "not-in-order": Code((Unavailable,), "`doctor` found something that fails", "do what the finding says"),
    "run-not-sealed": Code(
        (Conflict,), "a run that was followed was not sealed", "`ledger log --subject run:RUN` says why"
    ),
    "trust": Code((Tampered,), "the appliance is not the one of the trust file", "check `--home` and `--trust`"),
}

PEOPLE = {
    "expired": Code((Denied, NotAuthenticated), "an order, session, token or export has expired", "make a new one"),
    "not-yet-valid": Code(
        (Denied, NotAuthenticated), "a statement or export is dated after now", "set this machine's clock"
    ),
    "too-long": Code(
        (Denied, NotAuthenticated), "a statement is made for longer than policy allows", "make it shorter"
    ),
    "before-reset": Code(
        (Denied, NotAuthenticated), "a statement is older than the clock's last reset", "make a new one"
    ),
    "before-restoration": Code(
        (Denied, NotAuthenticated), "a statement is older than the log's last restoration", "make a new one"
    ),
    "revoked": Code(
        (NotAuthenticated, Denied), "the token was revoked, or the run's base or dataset", "get a new token"
    ),
    "quarantined": Code((Denied,), "the run's base has changed on disk", "an administrator looks at `ledger verify`"),
    "erased": Code((Denied,), "the text was erased", "nothing: it is gone"),
    "does-not-fit": Code((Conflict,), "the run does not fit this machine", "change the recipe; `run plan` advises"),
    "cancelled": Code(
        (Denied, Unavailable), "the job was cancelled, or nothing waits for it", "order it again if needed"
    ),
    "too-slow": Code((BadInput,), "a request or upload did not arrive in time", "send it again"),
    "disconnected": Code((BadInput,), "a request's connection ended before its body", "send it again"),
    "starting": Code(
        (Unavailable,), "the service starts after a clock was set right, or the log was restored", "ask again"
    ),
    "in-effect": Code(
        (Conflict,), "another signature gave the order effect before", "nothing: the entry says what was done"
    ),
    "not-fetched": Code(
        (Unavailable,), "nobody fetched the answers of a sample view or trial in time", "order it again"
    ),
    "another-build": Code(
        (Unavailable,), "the service answers in another form than this build's", "compare their versions"
    ),
    "console-off": Code((Unavailable,), "the console is not switched on", "set `console`, and start the service again"),
    "no-session": Code((NotAuthenticated,), "this browser has no session", "type `appliance console`"),
    "identity-required": Code(
        (Denied, NotAuthenticated),
        "policy requires an ID token of the site's identity provider for this session",
        "sign in at the provider; on the command line type `appliance login`",
    ),
    "identity-refused": Code(
        (Denied,),
        "the identity provider did not sign the person in, or its ID token opens no session of theirs",
        "read the reasons; sign in again, or ask an administrator",
    ),
    "used-link": Code(
        (NotAuthenticated,), "a sign-in link was used, is too old or never was", "type `appliance console` again"
    ),
    "wrong-signature": Code(
        (Denied,),
        "a passkey's assertion does not hold for this order, person or address",
        "sign with a passkey that is enrolled for this address",
    ),
    "rate-limited-sessions": Code(
        (Denied,),
        "the person has 64 open sessions, as many as they may",
        "log out of one, end one in *Open sessions*, or wait until one ends",
    ),
    "not-opened": Code(
        (Denied,),
        "an approval was asked for in the console before its session opened the parts of the review page",
        "open the tabs Changes, Quality and Findings of the adapter's page, then decide",
    ),
    "not-signed": Code(
        (BadInput,), "a form came without a passkey's assertion", "open the order's page again, and sign it there"
    ),
    "cross-site": Code((Denied,), "a form did not come from a page of the console", "open the page, and send it there"),
    "wrong-host": Code((BadInput,), "the console was asked for under another name", "use the setting `console_url`"),
    "service-ends": Code((Unavailable,), "the service ended while you waited", "ask again after its start"),
}

UNITS = {
    "challenge": Code(
        (NotAuthenticated,),
        "a token request, or a person's sign-in, answers no challenge of the last minute",
        "ask for a new challenge: load the page again, or type the command again",
    ),
    "no-token": Code((Unavailable,), "the token agent has no token that is valid now", "wait, or read the agent's log"),
    "rate-limited-tokens": Code(
        (Denied,), "the application has as many valid tokens as it may", "use one of them, or wait until one ends"
    ),
    "instruction-erased": Code(
        (Denied,), "the text that the release puts in was erased", "send a system message of your own"
    ),
    "model-not-found": Code((NotFound,), "nothing of that name is released to the unit", "ask the release owner"),
    "not-admitted": Code(
        (Denied,), "the adapter may not serve the unit now; the reasons say why", "ask the release owner"
    ),
    "release-suspended": Code(
        (Denied,),
        "a reviewer, release owner or administrator suspended the adapter for the unit",
        "ask the release owner; the reason names who can resume it",
    ),
    "cut-off": Code(
        (Denied,), "adapter or token was revoked, or the adapter suspended, during the answer", "ask the release owner"
    ),
    "no-prompt": Code(
        (BadInput,), "a row of a look has no prompt: it is written whole", "look at another adapter's rows"
    ),
    "context-length": Code(
        (TooLarge,),
        "the prompt does not fit the model's context; units get the status 400, as from OpenAI",
        "send less",
    ),
    "concurrent-limit": Code((RateLimited,), "the unit has too many requests at once", "wait for one to end"),
    "rate-limit": Code((RateLimited,), "the unit's requests of this minute are used up", "wait for `Retry-After`"),
    "answers-a-day": Code(
        (QuotaExceeded,), "a condition of the approval: the day's answers are used up", "ask again after 00:00 UTC"
    ),
    "token-limit": Code(
        (RateLimited,), "the unit's tokens of this minute or day are used up", "wait for `Retry-After`"
    ),
    "answer-altered": Code((BadInput,), "the chat template changes the answer's text", "give other messages or rows"),
    "harness-missing": Code(
        (Unavailable,), "lm-eval or evaluate is not installed", "install it, and set `harness_packages`"
    ),
    "cache-full": Code((Unavailable,), "the engine has no memory for another request", "ask again"),
    "not-finite": Code((Unavailable,), "the model computed a number that is not finite", "ask again; then report it"),
    "answer-failed": Code((Unavailable,), "one answer failed by a defect", "ask again; then report it"),
    "unrecorded": Code((Unavailable,), "the answer's end could not be recorded", "ask again"),
    "engine-ended": Code((Unavailable,), "the serving worker has ended", "ask again: it starts anew"),
    "engine-broken": Code((Unavailable,), "the serving worker said something unexpected", "ask again: it starts anew"),
    "slot-emptied": Code((Unavailable,), "the adapter was unloaded while it was loaded", "ask again"),
    "another-unit": Code((Denied,), "an exported adapter is for another unit", "get the unit's own export"),
    "another-served-model": Code(
        (Denied,), "an exported adapter is for another served model", "get the served model's own export"
    ),
}

TRAINING = {
    "base-refused": Code((BadInput,), "the base's files are not what can be imported", "give the files that it names"),
    "nothing-to-train": Code((BadInput,), "rows have nothing that can be trained", "correct the rows that it names"),
    "nothing-trained": Code((Unavailable,), "no weight changed in training", "change the recipe, or report it"),
    "diverged": Code((BadInput,), "the loss became too large or not finite", "lower the learning rate"),
    "base-not-finite": Code(
        (BadInput,),
        "the loss is not finite before anything was trained",
        "check the rows that it names, or import the publisher's own weights",
    ),
    "batch-dependent": Code(
        (BadInput,), "the adapter's answers depend on what is evaluated beside them", "evaluate on another machine"
    ),
    "not-servable": Code((BadInput,), "the adapter is not one that can be served", "train it by another method"),
    "fingerprint-unconfirmed": Code(
        (Tampered,), "the worker did not confirm a loaded adapter's logit fingerprint", "see `fingerprint-differs`"
    ),
    "fingerprint-differs": Code(
        (Tampered,), "other logits than at sealing: other bytes, or another kind of machine", "train it on this kind"
    ),
    "adapter-inactive": Code((Tampered,), "the adapter does not change the base's logits", "train it again"),
    "out-of-memory": Code((Unavailable,), "a worker needed more memory than there is", "use a smaller recipe, or wait"),
    "time-limit": Code((TooLarge,), "a worker took longer than its limit", "give less, or raise the setting"),
    "truncated-frame": Code((BadInput,), "a worker's message was cut off", "look at the worker's log"),
    "worker-ended": Code((Unavailable,), "a worker has ended without a result", "look at its log; try again"),
    "rank-ended": Code((Unavailable,), "a process of a training run has ended", "look at its log; `run resume`"),
    "rank-silent": Code(
        (Unavailable,), "a process of a training run sent nothing for 25 minutes", "look at its log; `run resume`"
    ),
    "ranks-differ": Code(
        (Unavailable,), "processes of a run came to other weights", "train on nodes of one kind, then `run resume`"
    ),
    "node-network": Code(
        (Unavailable,), "the nodes of a job cannot reach one another", "let them connect by TCP, then `run resume`"
    ),
    "node-lost": Code((Unavailable,), "a node of a job has gone", "none: the run is started again"),
    "slurm-refused": Code(
        (BadInput,), "Slurm did not take a job", "correct what Slurm's message names, then `run resume`"
    ),
    "slurm-unreachable": Code((Unavailable,), "slurmctld did not answer in time", "`run resume` once it does"),
    "slurm-missing": Code((Unavailable,), "a Slurm command was not found", "install it, or set `slurm_commands`"),
    "slurm-job": Code((Unavailable,), "a job has ended before its worker began", "look at the worker's log"),
    "slurm-cancelled": Code((Unavailable,), "somebody cancelled the job in Slurm", "`run resume`"),
    "slurm-deadline": Code((Unavailable,), "the job passed its deadline in Slurm", "`run resume`"),
    "slurm-node": Code((Unavailable,), "a node reported an error without a code", "look at the worker's log"),
    "other-code": Code(
        (Unavailable,), "a node has another version of the appliance", "install the service's version there"
    ),
    "service-silent": Code((Unavailable,), "a node waited too long for the service", "`run resume`"),
    "shared-folder": Code(
        (Unavailable,), "the folder shared with the nodes does not work", "check its free space and its mount"
    ),
    "slots-full": Code(
        (RateLimited,), "vLLM holds as many adapters as it can", "wait until one is idle; docs/guides/vllm.md"
    ),
    "rank-too-large": Code(
        (Conflict,), "the adapter's rank is too large for vLLM", "train it with a smaller one; docs/guides/vllm.md"
    ),
    "adapter-refused": Code(
        (Conflict,), "vLLM does not take the adapter", "look at the worker's log; docs/guides/vllm.md"
    ),
    "vllm": Code((BadInput,), "vLLM does not answer this kind of request", "leave it out; docs/guides/vllm.md"),
    "no-vllm": Code((Unavailable,), "vLLM is not in `vllm_packages`", "install it; docs/guides/vllm.md"),
    "worker-silent": Code((Unavailable,), "a worker said nothing in time and was ended", "look at its log; try again"),
    "worker-failed": Code((BadInput,), "a worker failed with a code that is none", "look at its log, and report it"),
    "sandbox-unavailable": Code(
        (Unavailable,), "the sandbox could not be built", "`appliance doctor` says what is missing"
    ),
    "sandbox-escape": Code((Unavailable,), "a probe got through the sandbox", "stop, and look at `appliance doctor`"),
    "interrupted": Code((Unavailable,), "the service ended during the job", "order it again, or `run resume`"),
    "disk": Code((Unavailable,), "the disk is full or fails", "free space; `appliance storage` lists what uses it"),
    "program-ended": Code((Unavailable,), "a program of the appliance ended without an answer", "look at its log"),
    "closing": Code(
        (Unavailable,),
        "the service ends, so work was left",
        "after the next start, runs and replays continue; repeat anything else",
    ),
}

LOG = {
    "clock": Code((Unavailable,), "the clock differs too much from the log's time", "set it; see `clock reset`"),
    "locked": Code(
        (Conflict,), "another service of this log runs", "stop it, or name each process: docs/guides/hosts.md"
    ),
    "restored": Code(
        (Conflict,),
        "the home was restored from a backup and not confirmed",
        "see that no other copy can start, then: `appliance backup confirm`",
    ),
    "other-build": Code(
        (Conflict,),
        "other processes of this log run an incompatible build",
        "install one build everywhere",
    ),
    "fenced": Code((Unavailable,), "other processes took over from this one", "start this process again"),
    "no-contact": Code(
        (Unavailable,), "the process has not reached the database for 5 s", "nothing: it continues once it does"
    ),
    "no-engine": Code((Unavailable,), "this process has no engine (`roles`)", "use a process with the role `units`"),
    "schema": Code(
        (Tampered,),
        "the database is not what the migrations make",
        "restore a backup, or see *When it does not start* in operations",
    ),
    "development-database": Code(
        (Conflict,),
        "the database was made by a build before the first release",
        "begin with a new home; export the old log with the build that made it",
    ),
    "commit-unknown": Code((Unavailable,), "the database did not say whether it committed", "nothing: it is looked up"),
    "signer-unreachable": Code((Unavailable,), "no signer answers at its socket", "start it, and ask again"),
    "signer-ahead": Code(
        (Conflict,), "the signer has signed a later checkpoint", "nothing: its batch is committed first"
    ),
    "signer-behind": Code(
        (Tampered,), "the log has entries that the signer has not signed", "put the newer record of the signer back"
    ),
    "batch-missing": Code(
        (Tampered,),
        "the signer has signed entries that the log lacks",
        "put the newer database and home back, or restore the log",
    ),
    "awaits-step-back": Code(
        (Unavailable,), "the signer has to step back to the restored log first", "see `signer step-back`"
    ),
    "another-log": Code((Denied,), "the signer belongs to another log", "correct signer_socket"),
    "missing": Code((Tampered,), "the ledger lacks an entry", "stop, and restore a backup"),
    "archived": Code((NotFound,), "an archive removed the entry's bytes", "read it in the archive that is named"),
    "archive-differs": Code(
        (Conflict, Tampered),
        "an order to archive records does not fit the log's entries",
        "prepare the archive again; if the entries are those of the order, call an auditor",
    ),
    "chain": Code((Tampered,), "an entry does not continue the one before", "stop, and call an auditor"),
    "entry-out-of-order": Code((Tampered,), "an entry is earlier than the one before", "stop, and call an auditor"),
    "document-invalid": Code((Tampered,), "a document is missing or has other bytes", "stop, and call an auditor"),
    "log-truncated": Code(
        (Tampered,),
        "a witness, or this account, has seen a longer log than this one",
        "stop: the log was cut or restored",
    ),
    "restoration-refused": Code(
        (Tampered,),
        "no restoration of the log gives up this checkpoint",
        "call an auditor; keep the file with the checkpoint",
    ),
    "awaits-restoration": Code(
        (Unavailable,),
        "the service waits until two administrators restore the log",
        "see `restoration show`",
    ),
    "given-up": Code(
        (Conflict,),
        "a witness has cosigned entries that a restoration gave up",
        "have it accept the restoration; see `restoration export`",
    ),
    "feed-ahead": Code(
        (Conflict,),
        "the reader of the feed has an entry that the log lacks",
        "ask an auditor whether the log lost some",
    ),
    "feed-gap": Code(
        (Tampered,),
        "the feed leaves out entries that it does not count as archived",
        "export the log, verify it, and compare the feed with it",
    ),
    "split-view": Code((Tampered,), "a witness, or this account, has seen another log", "stop, and call an auditor"),
    "witness-missing": Code((Tampered,), "the record of what a witness saw is gone", "restore it from its medium"),
    "old-size": Code((Conflict,), "a request to a witness begins elsewhere than it saw", "make the request anew"),
    "shorter-log": Code((Conflict,), "a request shows a witness less than it saw", "find out why the log is shorter"),
}

SECTIONS = {
    "General": GENERAL,
    "The command line": COMMAND_LINE,
    "Orders and people": PEOPLE,
    "Units and answers": UNITS,
    "Imports, runs and workers": TRAINING,
    "The log and its witnesses": LOG,
}
CODES = {name: code for section in SECTIONS.values() for name, code in section.items()}


class Found(NamedTuple):
    """A code where it is given. `branch`: the error class, where the place names one."""

    code: str
    branch: str | None
    place: str


@cache
def find_codes(folder: Path = APPLIANCE) -> tuple[Found, ...]:
    """Every code that a file gives as text: `code="…"` of a call, `{"code": "…"}`, `code = "…"` of a class, the second
    value of the command line's `_fail`. A name counts for each value that its file gives it, and a constant of
    another file for its own."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py"))}
    names = {path: _values_of_names(tree) for path, tree in trees.items()}
    constants = {name: values for own in names.values() for name, values in own.items() if name.isupper()}
    return tuple(
        found
        for path, tree in trees.items()
        for found in _find_in(tree, constants | names[path], str(path.relative_to(folder)))
    )


def _find_in(tree: ast.Module, names: dict[str, list[ast.expr]], place: str) -> Iterator[Found]:
    for node in ast.walk(tree):
        for value, branch in _given(node):
            for code in _texts(value, names):
                if _CODE.fullmatch(code):
                    yield Found(code, branch if branch in BRANCHES else None, f"{place}:{value.lineno}")


def _given(node: ast.AST) -> Iterator[tuple[ast.expr, str | None]]:
    match node:
        case ast.Call(func=ast.Name(id="_fail"), args=[_, code, *_]):
            yield code, None
        case ast.Call(func=function, keywords=keywords):
            yield from ((one.value, ast.unparse(function)) for one in keywords if one.arg == "code")
        case ast.Dict(keys=keys, values=values):
            yield from (
                (value, None)
                for key, value in zip(keys, values, strict=True)
                if isinstance(key, ast.Constant) and key.value == "code"
            )
        case ast.ClassDef(name=name, body=body):
            yield from ((one.value, name) for one in body if isinstance(one, ast.Assign) and _targets(one) == ["code"])


def _values_of_names(tree: ast.Module) -> dict[str, list[ast.expr]]:
    """Return the values that each name of the file gets, anywhere in it, also in loops over literal rows."""
    found: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                _bind(target, node.value, found)
        elif isinstance(node, ast.For) and isinstance(node.iter, ast.Name):
            for rows in found.get(node.iter.id, []):
                _bind_rows(node.target, rows, found)
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            found.setdefault(node.target.id, []).append(node.value)
    return found


def _bind(target: ast.expr, value: ast.expr, found: dict[str, list[ast.expr]]) -> None:
    if isinstance(target, ast.Name):
        found.setdefault(target.id, []).append(value)
    elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for one, its in zip(target.elts, value.elts, strict=False):
            _bind(one, its, found)


def _bind_rows(target: ast.expr, rows: ast.expr, found: dict[str, list[ast.expr]]) -> None:
    for row in ast.walk(rows):
        if isinstance(row, ast.Tuple):
            _bind(target, row, found)


def _targets(node: ast.Assign) -> list[str]:
    return [target.id for target in node.targets if isinstance(target, ast.Name)]


def _texts(value: ast.expr, names: dict[str, list[ast.expr]]) -> Iterator[str]:
    match value:
        case ast.Constant(value=str(text)):
            yield text
        case ast.IfExp(body=body, orelse=other):
            yield from _texts(body, names)
            yield from _texts(other, names)
        case ast.Name(id=name):
            for one in names.get(name, []):
                if not (isinstance(one, ast.Name) and one.id == name):
                    yield from _texts(one, names)
