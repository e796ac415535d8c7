"""What a private adapter tells of a training row, alone and with the runs on the same dataset that came before it."""

from __future__ import annotations

from decimal import Decimal as Number

from appliance.domain.core.state import State
from appliance.domain.releases.page.changes import read_object
from appliance.domain.releases.page.material import RECIPE_FILE, PageMaterial
from appliance.domain.releases.page.value import Privacy, PrivateRun, TrainedBefore
from appliance.errors import NotFound
from appliance.formats.artifacts.manifest import Guarantee


def list_trained_before(state: State, adapter: str) -> TrainedBefore:
    """The runs on the adapter's dataset before it was sealed: private ones that began, and others that were sealed."""
    sealed = state.adapters.get(adapter)
    own = None if sealed is None else state.runs.get(sealed.run)
    if sealed is None or own is None:
        raise NotFound(f"adapter {adapter}: expected it and its run, got none")
    others = [run for run in state.runs.values() if run.dataset_digest == own.dataset_digest and run.id != own.id]
    before = {one.run for one in state.adapters.values() if one.index < sealed.index}
    return TrainedBefore(
        private=tuple(
            PrivateRun(run=run.id, epsilon=run.privacy.epsilon, delta=run.privacy.delta)
            for run in others
            if run.privacy is not None and run.secret is not None and run.index < sealed.index
        ),
        plain=sum(run.privacy is None and run.id in before for run in others),
    )


def make_privacy(material: PageMaterial) -> Privacy | None:
    """None of an adapter whose manifest promises nothing."""
    promised, before = material.version.manifest.privacy, material.trained_before
    if promised is None:
        return None
    recipe = read_object(material.version, RECIPE_FILE).get("privacy") or {}
    all_of_them: list[Guarantee | PrivateRun] = [promised, *before.private]
    return Privacy(
        epsilon=promised.epsilon,
        delta=promised.delta,
        noise=str(recipe.get("noise")),
        clip=str(recipe.get("clip")),
        epsilon_all=_add(all_of_them, "epsilon"),
        delta_all=_add(all_of_them, "delta"),
        before=before,
    )


def _add(guarantees: list[Guarantee | PrivateRun], name: str) -> str:
    """Basic composition: what several releases tell together is at most the sum."""
    return f"{sum((Number(getattr(one, name)) for one in guarantees), Number(0)):f}"


def describe_privacy(privacy: Privacy) -> list[tuple[str, str]]:
    """As people read it, wherever the page is shown."""
    before, told = privacy.before, [("epsilon", f"{privacy.epsilon} at delta {privacy.delta}, for one training row")]
    told.append(("a person's rows", "not this epsilon: of a person with k rows k times it, at a larger delta"))
    told.append(("noise", f"{privacy.noise} times the clipping norm, {privacy.clip}"))
    if before.private:
        named = ", ".join(one.run for one in before.private[:8]) + (" …" if len(before.private) > 8 else "")
        runs = "1 private run" if len(before.private) == 1 else f"{len(before.private)} private runs"
        told.append(
            (
                "with earlier runs",
                f"epsilon {privacy.epsilon_all} at delta {privacy.delta_all}, added up over this and "
                f"{runs} on the same dataset: {named}",
            )
        )
    if before.plain:
        which = "1 adapter was" if before.plain == 1 else f"{before.plain} adapters were"
        told.append(("not covered", f"{which} trained on the same dataset before without privacy"))
    told.append(("not counted", "runs on other datasets with the same rows; measures; how this run was chosen"))
    return told
