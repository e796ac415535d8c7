"""Slurm's commands, run by argv; their output is parsed as untrusted JSON."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.errors import BadInput, Unavailable

UNREACHABLE = "slurm-unreachable"
REFUSED = "slurm-refused"
ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
)
"""States of a job that will not run again, unless it is being requeued."""
_UNFINISHED = frozenset({"PENDING", "RUNNING", "COMPLETING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED"})
_TIMEOUT_S = 60.0
_MOST_BYTES = 64 << 20
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")
_ADDRESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:_-]{0,254}")
_ID = re.compile(rb"([1-9][0-9]{0,9})(;[^\n]{1,255})?\n?")
_MOST_TEXT = 300
# Messages when the controller does not respond; the commands use the same exit code for all errors.
_NO_ANSWER = re.compile(
    r"unable to contact slurm controller|connect(ion)? (failure|refused|timed out)|socket timed out|"
    r"zero bytes were transmitted|unexpected message received|temporarily unable|could not establish",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class SlurmJob:
    """The state of a job as Slurm reports it. `node` is empty while it has none; `comment` was given at submission."""

    id: int
    states: frozenset[str]
    reason: str
    node: str
    restarts: int
    comment: str

    @property
    def over(self) -> bool:
        """Return True if nothing of the job runs or will run."""
        return bool(self.states & ENDED) and not self.states & _UNFINISHED

    @property
    def runs(self) -> bool:
        """Return True if the job is running."""
        return "RUNNING" in self.states

    @property
    def state_text(self) -> str:
        """Return the state in Slurm's own words."""
        why = f" ({self.reason})" if self.reason not in ("", "None") else ""
        return "+".join(sorted(self.states)) + why


class Commands:
    """sbatch, scontrol, squeue and scancel in one folder; `environment` selects the cluster."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self._environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **environment}

    def submit(self, options: Sequence[str], script: bytes) -> int:
        """Submit a job and return its number.

        Raises:
            BadInput: Slurm refused the job (code `slurm-refused`); the message has Slurm's own words.
        """
        answer = self._run(["sbatch", "--parsable", *options], script)
        found = _ID.fullmatch(answer)
        if found is None:
            raise Unavailable(f"slurm, sbatch: expected the number of a job, got {answer[:80]!r}", code=UNREACHABLE)
        return int(found[1])

    def show(self, job: int) -> SlurmJob | None:
        """Return the current state of a job, or None if Slurm does not know this number any more."""
        try:
            answer = self._run(["scontrol", "show", "job", str(job), "--json"])
        except BadInput as error:
            if "invalid job id" in error.message.lower():
                return None
            raise
        return next((one for one in _parse_jobs(answer) if one.id == job), None)

    def find(self, comment: str) -> list[SlurmJob]:
        """Return this user's jobs with that comment, including ended ones while Slurm remembers them."""
        answer = self._run(["squeue", "--me", "--states=all", "--json"])
        return [one for one in _parse_jobs(answer) if one.comment == comment]

    def address(self, node: str) -> str:
        """Return the address by which the cluster reaches the node, as Slurm has it."""
        answer = self._run(["scontrol", "show", "node", node, "--json"])
        try:
            (found,) = json.loads(answer[:_MOST_BYTES])["nodes"]
            address = found["address"]
        except (ValueError, KeyError, TypeError, RecursionError):
            address = None
        if not isinstance(address, str) or _ADDRESS.fullmatch(address) is None:
            raise Unavailable(f"slurm, node {node}: expected its address, got none", code="node-network")
        return address

    def cancel(self, job: int) -> None:
        """Cancel a job; a job that is over or unknown is not an error."""
        try:
            self._run(["scancel", str(job)])
        except BadInput as error:
            if "invalid job id" not in error.message.lower():
                raise

    def _run(self, command: list[str], given: bytes = b"") -> bytes:
        try:
            completed = subprocess.run(
                [str(self.folder / command[0]), *command[1:]],
                input=given,
                capture_output=True,
                env=self._environment,
                cwd="/",
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Unavailable(
                f"slurm, {command[0]}: expected an answer within {_TIMEOUT_S:.0f} s, got none", code=UNREACHABLE
            ) from None
        except OSError as error:
            raise Unavailable(
                f"slurm, {self.folder / command[0]}: expected Slurm's command, got {error.strerror}; "
                "set slurm_commands",
                code="slurm-missing",
            ) from None
        message = _clean_message(completed.stderr)
        if completed.returncode == 0 and not (command[0] == "scontrol" and "Invalid job id" in message):
            return completed.stdout[: _MOST_BYTES + 1]
        if _NO_ANSWER.search(message):
            raise Unavailable(f"slurm, {command[0]}: expected slurmctld to answer, got: {message}", code=UNREACHABLE)
        raise BadInput(f"slurm, {command[0]}: expected it to be done, got: {message}", code=REFUSED)


def _clean_message(message: bytes) -> str:
    """Return a command's message on one line, without characters that control a terminal."""
    text = " ".join(message.decode("utf-8", "replace").split())
    plain = "".join(character if character.isprintable() else "?" for character in text)
    return plain[:_MOST_TEXT] or "no words"


def _parse_jobs(answer: bytes) -> list[SlurmJob]:
    """Parse the jobs in the JSON of Slurm 23.02 or later."""
    if len(answer) > _MOST_BYTES:
        raise Unavailable(f"slurm, jobs: expected at most {_MOST_BYTES} bytes, got more", code=UNREACHABLE)
    try:
        jobs = json.loads(answer)["jobs"]
        return [_parse_job(one) for one in jobs]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Unavailable(
            f"slurm, jobs: expected the JSON of Slurm 23.02 or later, got {type(error).__name__}", code=UNREACHABLE
        ) from None


def _parse_job(value: dict[str, Any]) -> SlurmJob:
    states, number = value["job_state"], value["job_id"]
    states = [states] if isinstance(states, str) else states
    if type(number) is not int or not all(isinstance(one, str) and WORD.fullmatch(one) for one in states):
        raise ValueError("job")
    node, restarts = str(value.get("nodes") or ""), value.get("restart_cnt", 0)
    if type(restarts) is not int or restarts < 0:
        raise ValueError("restart_cnt")
    return SlurmJob(
        id=number,
        states=frozenset(states),
        reason=_clean_message(str(value.get("state_reason") or "None").encode())[:80],
        node=node if WORD.fullmatch(node) else "",
        restarts=restarts,
        comment=str(value.get("comment") or "")[:_MOST_TEXT],
    )


def command_environment() -> dict[str, str]:
    """Return the variables of the service's environment that select the cluster."""
    return {name: os.environ[name] for name in ("SLURM_CONF", "SLURM_CLUSTERS") if os.environ.get(name)}
