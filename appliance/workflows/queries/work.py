"""Imports, runs and replays: how far they are, and what came of them."""

from __future__ import annotations

from typing import Any

from appliance.domain.core.state import State
from appliance.domain.core.words import unknown_word
from appliance.domain.data.tasks import PREFERENCE
from appliance.domain.evaluation.basis import count_judged, count_judged_on, find_sets
from appliance.domain.planning.shape import read_roles
from appliance.domain.recipe.recipe import Facts
from appliance.domain.runs.conditions import UNDER_WAY
from appliance.errors import NotFound
from appliance.runners.host import visible_cards
from appliance.workflows.core.context import Context
from appliance.workflows.core.progress import Stream
from appliance.workflows.evaluation.local_sets import list_local
from appliance.workflows.runs import planning, steps


def import_status(context: Context, order: str) -> dict[str, Any]:
    record = context.ledger.state.imports.get(order)
    if record is None:
        raise NotFound(f"import: expected one that was ordered, got {order}")
    stream = context.progress.read(order)
    current = context.ledger.state.imports.get(order) or record
    # Its entry comes before its result; until the result is there, it is reported as running.
    under_way = {"status": "requested"} if stream.frames and not stream.ended else {}
    return {
        **current.model_dump(mode="json"),
        **under_way,
        "result": stream.result,
        "error": _why(context, stream),
        "progress": list(stream.frames)[-1:],
    }


def replay_status(context: Context, order: str) -> dict[str, Any]:
    record = context.ledger.state.replays.get(order)
    if record is None:
        raise NotFound(f"replay: expected one that was ordered, got {order}")
    stream = context.progress.read(order)
    current = context.ledger.state.replays.get(order) or record
    return {**current.model_dump(mode="json"), "error": _why(context, stream), "progress": list(stream.frames)[-1:]}


def _why(context: Context, stream: Stream) -> dict[str, str] | None:
    """Why it failed; a text that was erased meanwhile is still in memory, and is not shown."""
    error = stream.error
    text = None if error is None else context.ledger.state.texts.get(error.get("commitment", ""))
    if error is None or text is None or text.erased is None:
        return error
    return {**error, "message": f"erased by entry {text.erased}"}


def training_checkpoints(context: Context, run: str) -> list[dict[str, Any]]:
    """Those of a run, by step: where a window of it can begin and end."""
    state = context.ledger.state
    if run not in state.runs:
        raise NotFound(f"run: expected a known one, got {run!r}")
    return [made.model_dump(mode="json") for made in state.training_checkpoints.values() if made.run == run]


def run_progress(context: Context, run: str, after: int) -> dict[str, Any]:
    """The run's frames from `after` on."""
    row = context.ledger.state.runs.get(run)
    if row is None:
        raise NotFound(f"run: expected a known one, got {run!r}")
    stream = context.progress.read(run)
    if after > stream.next:
        after = 0  # counted by another life of the service
    row, error = context.ledger.state.runs.get(run) or row, _why(context, stream)
    return {
        "status": row.status,
        "frames": [frame for frame in list(stream.frames) if frame["seq"] >= after],
        "next": stream.next,
        "ended": stream.ended or row.status not in UNDER_WAY,
        "detail": None if error is None else error["message"],
        "adapter": next((key for key, a in context.ledger.state.adapters.items() if a.run == run), None),
    }


def run_steps(context: Context, run: str) -> bytes:
    """The steps that the run has taken: steps.jsonl, or as much of it as there is."""
    return steps.read(context.ledger.state, context.artifacts, context.steps, run)


def _standing_sets(state: State, base_digest: str, task: object) -> list[dict[str, Any]]:
    """The validation sets that a run on this base and task could be judged on, each in its newest version."""
    names = [one.name for one in state.validation_sets.values() if task in (None, one.task)]
    found = find_sets(state, names, base_digest).values()
    return [{**one.model_dump(mode="json"), "judged_before": count_judged_on(state, one)} for one in found]


def recipe_facts(context: Context, base_name: str, dataset_name: str) -> dict[str, Any]:
    """What a client needs to resolve a recipe by itself."""
    state = context.ledger.state
    base, dataset = state.bases.get(base_name), state.datasets.get(dataset_name)
    if base is None or dataset is None:
        inputs = (("base", base_name, state.bases), ("dataset", dataset_name, state.datasets))
        known = ((kind, name, [key for key, _ in table.items()]) for kind, name, table in inputs)
        raise NotFound(
            "; ".join(
                unknown_word(kind, name, keys, "an imported one") for kind, name, keys in known if name not in keys
            )
        )
    roles, experts = read_roles(base.facts)
    machine = planning.describe_machine(context)
    facts = Facts(
        train_rows=dataset.facts["train_rows"],
        max_tokens=dataset.facts["max_tokens"],
        context_length=base.facts["context_length"],
        device="cuda" if context.device == "cuda" else "cpu",
        bfloat16=context.bfloat16,
        threads=machine.threads,
        cards=max(1, len(visible_cards())),
        stored="gptq" if base.facts.get("quantisation") == "gptq" else "none",
        roles=roles,
        experts=experts,
        preferences=dataset.facts.get("task") == PREFERENCE,
    )
    return {
        "base_digest": base.digest,
        "dataset_digest": dataset.digest,
        "facts": facts.model_dump(mode="json"),
        "base_facts": base.facts,
        "dataset_facts": dataset.facts,
        "judged_before": count_judged(state, dataset_name),
        "local_sets": list_local(context, dataset_name),
        "validation_sets": _standing_sets(state, base.digest, dataset.facts.get("task")),
        "machine": machine.model_dump(mode="json"),
        "runs_on": context.runs_on,
    }
