"""The check that a run fits this machine, at its order and again before its worker starts; and calibrations of its
speed.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from appliance.api.runs import CalibrationStatus, WorkError
from appliance.domain.planning.footprint import Subject
from appliance.domain.planning.pace import read_calibration
from appliance.domain.planning.plan import check_fits, plan_disk, read_subject
from appliance.domain.planning.shape import CARDS, Machine, MachineCalibration
from appliance.domain.recipe.methods import list_machine_problems
from appliance.domain.recipe.recipe import ResolvedRecipe
from appliance.errors import ApplianceError, Denied, refuse
from appliance.sandbox.host import visible_cards
from appliance.store.files.run_files import MAX_BYTES
from appliance.store.files.space import measure_space
from appliance.workflows.core.context import LedgerContext, RunContext, WorkerContext
from appliance.workflows.core.jobs import contain_defects
from appliance.workflows.core.workers import carry_out, check_sandbox, worker
from appliance.workflows.data.imports import checked_base

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Files with the memory limit of the service's control group, if it has one."""
_KIND = "calibration"
MOST_CALIBRATIONS = 8
"""Most unfinished calibrations of all people together, because runs wait behind them."""


def describe_machine(context: RunContext, *, now: bool = False) -> Machine:
    """Return the machine's description for a plan. `now`: count the memory that is available now, not the total."""
    space = measure_space(context.logs, context.reserve)
    host = context.host
    calibrations = tuple(one for one in context.calibrations.read() if one.host == host)
    if context.device == "cuda":
        memory = next((one.memory_bytes for one in calibrations), None) or _find_card_memory(host)
    else:
        memory = host_memory(now=now)
    return Machine(
        host=host,
        device="cuda" if context.device == "cuda" else "cpu",
        threads=len(os.sched_getaffinity(0)),
        bfloat16=context.bfloat16,
        memory_bytes=memory,
        disk_free_bytes=space.free,
        calibrations=calibrations,
    )


def _find_card_memory(host: str) -> int | None:
    return next((card.memory_bytes for card in CARDS if card.name.removeprefix("RTX ") in host), None)


def host_memory(*, now: bool) -> int:
    """Return the smaller of the machine's memory (or available memory) and the control group's limit, in bytes."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in _LIMITS:
        try:
            text = Path(name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        sizes += [int(text)] if text.isdigit() else []
    if now:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return min(sizes)


def check_order(context: RunContext, recipe: ResolvedRecipe) -> None:
    """Check that a run of this recipe could fit this machine if nothing else ran.

    Raises:
        Conflict: It could not.
    """
    _check_fits(context, recipe, describe_machine(context))


def check_start(context: RunContext, recipe: ResolvedRecipe) -> None:
    """Check that a run of this recipe fits beside the current load of this machine.

    Raises:
        Conflict: It does not.
    """
    _check_fits(context, recipe, describe_machine(context, now=True))


def _check_fits(context: LedgerContext, recipe: ResolvedRecipe, machine: Machine) -> None:
    refuse(
        "recipe", list_machine_problems(recipe.processes, recipe.device, machine.threads, max(1, len(visible_cards())))
    )
    check_fits(_subject(context, recipe), recipe, machine)


def max_checkpoint_bytes(context: LedgerContext, recipe: ResolvedRecipe) -> int:
    """Return the most bytes of a training checkpoint of this recipe: twice the planned size plus 16 MiB."""
    planned = plan_disk(_subject(context, recipe), recipe).largest_checkpoint
    return min(2 * planned + (16 << 20), MAX_BYTES)


def _subject(context: LedgerContext, recipe: ResolvedRecipe) -> Subject:
    state = context.ledger.state
    base, dataset = state.bases.require(recipe.base), state.datasets.require(recipe.dataset)
    return read_subject(recipe.base, recipe.dataset, base.facts, dataset.facts)


def order_calibration(context: RunContext, principal: str, recipe: ResolvedRecipe) -> str:
    """Queue a calibration behind the waiting runs, and return the key under which the same person can read its result.

    It is not recorded, since no decision uses the result and an operator can use the machine in any case. So a person
    has only one at a time, and there are few at a time in all.

    Raises:
        Denied: The principal is not an operator.
        RateLimited: The person has another unfinished calibration, or all people together have too many.
    """
    person = context.ledger.state.principals.get(principal)
    if person is None or not person.has("operator"):
        raise Denied(f"calibration: expected an operator, got {principal}")
    _subject(context, recipe)
    key = context.progress.open_one(_KIND, principal, MOST_CALIBRATIONS)
    context.runs.put(partial(_run_calibration, context, key, recipe))
    return key


def calibration_status(context: WorkerContext, principal: str, key: str) -> CalibrationStatus:
    """Return the state of a calibration.

    Raises:
        NotFound: The principal did not start this calibration.
    """
    stream = context.progress.read_personal(_KIND, key, principal)
    return CalibrationStatus(result=stream.result, error=stream.error, ended=stream.ended)


def _run_calibration(context: RunContext, key: str, recipe: ResolvedRecipe) -> None:
    try:
        with contain_defects("calibration"):
            made = _calibrate(context, key, recipe)
            context.calibrations.keep(made)
    except ApplianceError as error:
        context.progress.end(key, error=WorkError(code=error.code, message=error.message))
    else:
        context.progress.end(key, result=made)


def _calibrate(context: RunContext, key: str, recipe: ResolvedRecipe) -> MachineCalibration:
    check_start(context, recipe)
    base = checked_base(context, recipe.base)
    gpu = recipe.device == "cuda"
    with worker(context, key, "appliance.worker.calibrate", read=(base,), gpu=gpu) as started:
        check_sandbox(started)
        task = {"recipe": recipe.model_dump(mode="json"), "base": str(base)}
        measured = carry_out(started, task, on_frame=partial(context.progress.publish, key))
    shape = _subject(context, recipe).shape
    return read_calibration(shape, recipe, measured, host=context.host, time=context.now(context.ledger.state))
