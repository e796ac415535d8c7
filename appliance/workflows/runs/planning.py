"""Whether a run fits this machine, asked when it is ordered and again before its worker starts; and how fast it is."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from appliance.domain.planning.cards import CARDS, Calibration, Machine
from appliance.domain.planning.footprint import Subject
from appliance.domain.planning.pace import read_calibration
from appliance.domain.planning.plan import check_fits, plan_disk, read_subject
from appliance.domain.recipe.processes import misfits_machine
from appliance.domain.recipe.recipe import ResolvedRecipe
from appliance.errors import ApplianceError, Denied, NotFound, refuse
from appliance.formats.core.fields import show
from appliance.runners.host import visible_cards
from appliance.store.files.checkpoints import MAX_BYTES
from appliance.workflows.core.context import Context
from appliance.workflows.core.defects import contain_defects
from appliance.workflows.core.workers import carry_out, check_walls, worker
from appliance.workflows.data.imports import checked_base

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Of the group of processes that the service is in, where there is one."""
_KIND = "calibration"
MOST_CALIBRATIONS = 8
"""Of all people, that have not ended: runs wait behind them."""


def describe_machine(context: Context, *, now: bool = False) -> Machine:
    """The machine as a plan sees it; `now`: with the memory that others leave, not all that it has."""
    found = os.statvfs(context.logs)
    host = context.host
    calibrations = tuple(one for one in context.calibrations.read() if one.host == host)
    if context.device == "cuda":
        memory = next((one.memory_bytes for one in calibrations), None) or _of_catalogue(host)
    else:
        memory = host_memory(now=now)
    return Machine(
        host=host,
        device="cuda" if context.device == "cuda" else "cpu",
        threads=len(os.sched_getaffinity(0)),
        bfloat16=context.bfloat16,
        memory_bytes=memory,
        disk_free_bytes=found.f_bavail * found.f_frsize,
        calibrations=calibrations,
    )


def _of_catalogue(host: str) -> int | None:
    return next((card.memory_bytes for card in CARDS if card.name.removeprefix("RTX ") in host), None)


def host_memory(*, now: bool) -> int:
    """The smaller of what the machine has (or has left) and what the service's group may use."""
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


def check_order(context: Context, recipe: ResolvedRecipe) -> None:
    """Conflict where a run of this recipe could not fit this machine, whatever else it does."""
    _check_fits(context, recipe, describe_machine(context))


def check_start(context: Context, recipe: ResolvedRecipe) -> None:
    """... or does not fit beside what it does now."""
    _check_fits(context, recipe, describe_machine(context, now=True))


def _check_fits(context: Context, recipe: ResolvedRecipe, machine: Machine) -> None:
    refuse("recipe", misfits_machine(recipe.processes, recipe.device, machine.threads, max(1, len(visible_cards()))))
    check_fits(_subject(context, recipe), recipe, machine)


def max_checkpoint_bytes(context: Context, recipe: ResolvedRecipe) -> int:
    """What a training checkpoint of this recipe may have: twice what is planned, and a little."""
    planned = plan_disk(_subject(context, recipe), recipe).largest_checkpoint
    return min(2 * planned + (16 << 20), MAX_BYTES)


def _subject(context: Context, recipe: ResolvedRecipe) -> Subject:
    state = context.ledger.state
    base, dataset = state.bases.get(recipe.base), state.datasets.get(recipe.dataset)
    if base is None or dataset is None:
        raise NotFound(f"plan: expected an imported base and dataset, got {recipe.base} and {recipe.dataset}")
    return read_subject(recipe.base, recipe.dataset, base.facts, dataset.facts)


def order_calibration(context: Context, principal: str, recipe: ResolvedRecipe) -> str:
    """Behind the runs that wait: one device, one queue. The key under which its end is asked for, by the same person.

    Nothing is recorded: the result is used for no decision, and an operator can use the machine in any case. So a
    person has one at a time, and all together a few.
    """
    person = context.ledger.state.principals.get(principal)
    if person is None or not person.has("operator"):
        raise Denied(f"calibration: expected an operator, got {principal}")
    _subject(context, recipe)
    key = context.progress.open_one(_KIND, principal, MOST_CALIBRATIONS)
    context.runs.put(partial(_carry_through, context, key, recipe))
    return key


def calibration_status(context: Context, principal: str, key: str) -> dict[str, Any]:
    """The result is shown only to the principal who asked for it: under other keys are others' results."""
    stream = context.progress.read_own(key, principal) if key.startswith(f"{_KIND}:{principal}:") else None
    if stream is None:
        raise NotFound(f"calibration: expected the key of a calibration that {principal} started, got {show(key)}")
    return {"result": stream.result, "error": stream.error, "ended": stream.ended}


def _carry_through(context: Context, key: str, recipe: ResolvedRecipe) -> None:
    try:
        with contain_defects("calibration"):
            made = _calibrate(context, key, recipe)
            context.calibrations.keep(made)
    except ApplianceError as error:
        context.progress.end(key, error={"code": error.code, "message": error.message})
    else:
        context.progress.end(key, result=made.model_dump(mode="json"))


def _calibrate(context: Context, key: str, recipe: ResolvedRecipe) -> Calibration:
    check_start(context, recipe)
    base = checked_base(context, recipe.base)
    gpu = recipe.device == "cuda"
    with worker(context, key, "appliance.worker.calibrate", read=(base,), gpu=gpu) as started:
        check_walls(started)
        task = {"recipe": recipe.model_dump(mode="json"), "base": str(base)}
        found = carry_out(started, task, on_frame=partial(context.progress.publish, key))
    shape = _subject(context, recipe).shape
    return read_calibration(shape, recipe, found, host=context.host, time=context.now(context.ledger.state))
