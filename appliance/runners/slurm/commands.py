"""Slurm's own commands, by argv: what they are given, and what they answer, parsed as a stranger's JSON."""

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
_AWAKE = frozenset({"PENDING", "RUNNING", "COMPLETING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED"})
_TIMEOUT_S = 60.0
_MOST_BYTES = 64 << 20
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")
_ADDRESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:_-]{0,254}")
_ID = re.compile(rb"([1-9][0-9]{0,9})(;[^\n]{1,255})?\n?")
_MOST_TEXT = 300
# What the commands say where the controller does not answer; they have one exit code for everything.
_NO_ANSWER = re.compile(
    r"unable to contact slurm controller|connect(ion)? (failure|refused|timed out)|socket timed out|"
    r"zero bytes were transmitted|unexpected message received|temporarily unable|could not establish",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Job:
    """What Slurm says of a job. `node` is empty while it has none; `comment` is what it was submitted with."""

    id: int
    states: frozenset[str]
    reason: str
    node: str
    restarts: int
    comment: str

    @property
    def over(self) -> bool:
        """Whether nothing of it runs, and nothing will."""
        return bool(self.states & ENDED) and not self.states & _AWAKE

    @property
    def runs(self) -> bool:
        return "RUNNING" in self.states

    @property
    def told(self) -> str:
        """Its state in Slurm's own words."""
        why = f" ({self.reason})" if self.reason not in ("", "None") else ""
        return "+".join(sorted(self.states)) + why


class Commands:
    """sbatch, scontrol, squeue and scancel of one folder. `environment`: which cluster they speak to."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self._environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **environment}

    def submit(self, options: Sequence[str], script: bytes) -> int:
        """The number of the new job. BadInput (`slurm-refused`) with Slurm's own words where it takes no such job."""
        answer = self._run(["sbatch", "--parsable", *options], script)
        found = _ID.fullmatch(answer)
        if found is None:
            raise Unavailable(f"slurm, sbatch: expected the number of a job, got {answer[:80]!r}", code=UNREACHABLE)
        return int(found[1])

    def show(self, job: int) -> Job | None:
        """The job as it is now; None where Slurm knows none of this number any more."""
        try:
            answer = self._run(["scontrol", "show", "job", str(job), "--json"])
        except BadInput as error:
            if "invalid job id" in error.message.lower():
                return None
            raise
        return next((one for one in _parse_jobs(answer) if one.id == job), None)

    def find(self, comment: str) -> list[Job]:
        """This user's jobs with that comment, the ones that have ended included while Slurm remembers them."""
        answer = self._run(["squeue", "--me", "--states=all", "--json"])
        return [one for one in _parse_jobs(answer) if one.comment == comment]

    def address(self, node: str) -> str:
        """By which the cluster reaches the node, as Slurm has it."""
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
        """Ends the job; one that is over, or unknown, is not an error."""
        try:
            self._run(["scancel", str(job)])
        except BadInput as error:
            if "invalid job id" not in error.message.lower():
                raise

    def _run(self, command: list[str], given: bytes = b"") -> bytes:
        try:
            made = subprocess.run(
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
        said = _tell(made.stderr)
        if made.returncode == 0 and not (command[0] == "scontrol" and "Invalid job id" in said):
            return made.stdout[: _MOST_BYTES + 1]
        if _NO_ANSWER.search(said):
            raise Unavailable(f"slurm, {command[0]}: expected slurmctld to answer, got: {said}", code=UNREACHABLE)
        raise BadInput(f"slurm, {command[0]}: expected it to be done, got: {said}", code=REFUSED)


def _tell(said: bytes) -> str:
    """A command's own words on one line, without what a terminal would obey."""
    text = " ".join(said.decode("utf-8", "replace").split())
    plain = "".join(character if character.isprintable() else "?" for character in text)
    return plain[:_MOST_TEXT] or "no words"


def _parse_jobs(answer: bytes) -> list[Job]:
    """Unavailable where it is not the JSON of Slurm 23.02 or later."""
    if len(answer) > _MOST_BYTES:
        raise Unavailable(f"slurm, jobs: expected at most {_MOST_BYTES} bytes, got more", code=UNREACHABLE)
    try:
        jobs = json.loads(answer)["jobs"]
        return [_parse_job(one) for one in jobs]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Unavailable(
            f"slurm, jobs: expected the JSON of Slurm 23.02 or later, got {type(error).__name__}", code=UNREACHABLE
        ) from None


def _parse_job(value: dict[str, Any]) -> Job:
    states, number = value["job_state"], value["job_id"]
    states = [states] if isinstance(states, str) else states
    if type(number) is not int or not all(isinstance(one, str) and WORD.fullmatch(one) for one in states):
        raise ValueError("job")
    node, restarts = str(value.get("nodes") or ""), value.get("restart_cnt", 0)
    if type(restarts) is not int or restarts < 0:
        raise ValueError("restart_cnt")
    return Job(
        id=number,
        states=frozenset(states),
        reason=_tell(str(value.get("state_reason") or "None").encode())[:80],
        node=node if WORD.fullmatch(node) else "",
        restarts=restarts,
        comment=str(value.get("comment") or "")[:_MOST_TEXT],
    )


def command_environment() -> dict[str, str]:
    """What the service's own environment says of which cluster it belongs to."""
    return {name: os.environ[name] for name in ("SLURM_CONF", "SLURM_CLUSTERS") if os.environ.get(name)}
