"""The system message of the training, put into a request that has none, where the release says so."""

from __future__ import annotations

from appliance.domain.core.records.serving import release_key
from appliance.errors import Denied
from appliance.formats.core.commitment import Disclosure
from appliance.workflows.core.context import Context, Frame
from appliance.workflows.data.teaching import disclosed_instruction
from appliance.workflows.serving.answering import Loaded


def add_instruction(context: Context, loaded: Loaded, parameters: Frame) -> tuple[Frame, Disclosure | None]:
    """The parameters as the model is given them, and the text that was put in as the system message, if one was.

    Denied where the release wants it put in and its text was erased: an answer without it would be of another request
    than the one that the adapter was trained for.
    """
    state = context.ledger.state
    release = state.releases.get(release_key(loaded.unit, loaded.task))
    adapter = state.adapters.get(loaded.adapter)
    dataset = None if adapter is None else state.datasets.get(adapter.dataset)
    messages = parameters.get("messages")
    if release is None or dataset is None or not release.current.adds_instruction or messages is None:
        return parameters, None
    if any(message["role"] == "system" for message in messages):
        return parameters, None
    found = disclosed_instruction(context, dataset.instruction)
    if found is None:
        said = f"instruction of {loaded.task}: expected the text that its release puts in, got one that was erased"
        raise Denied(f"{said}; send a system message of your own", code="instruction-erased")
    if not found.text:
        return parameters, None
    return {**parameters, "messages": [{"role": "system", "content": found.text}, *messages]}, found
