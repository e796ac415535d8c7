"""What an adapter was taught, as its callers must know: its task, the system message and the labels.

No row of the dataset is in it: an example is made of the names of a row's parts. The instruction is a text that the
dataset's importer signed behind a commitment, and can be erased; labels are the dataset's own words for its answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from appliance.domain.data.tasks import QUESTIONS, Task
from appliance.errors import BadInput
from appliance.formats.core.canonical import encode_canonical, parse_canonical

ABOUT_FILE = "dataset.json"


@dataclass(frozen=True)
class About:
    """What lies beside the rows: their task, and for classification every label, sorted."""

    task: Task
    labels: tuple[str, ...]


def encode_about(about: About) -> bytes:
    return encode_canonical({"task": about.task, "labels": list(about.labels)})


def parse_about(data: bytes) -> About:
    """BadInput for bytes that are no file of this kind."""
    value = parse_canonical(data)
    if not isinstance(value, dict) or value.keys() != {"task", "labels"} or value["task"] not in get_args(Task):
        raise BadInput(f"{ABOUT_FILE}: expected a task and labels, got something else")
    labels = value["labels"]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise BadInput(f"{ABOUT_FILE}, labels: expected a list of texts, got something else")
    return About(value["task"], tuple(labels))


@dataclass(frozen=True)
class Teaching:
    """`instruction` is the empty text where rows had none, and None once its text is not there any more."""

    about: About
    instruction: str | None


def example_request(model: str, teaching: Teaching, *, added: bool) -> dict[str, Any]:
    """A request in the form that the adapter was trained on: the units' path and a body, in which `<text>` is the
    place of what goes there. `added`: the service puts the system message in by itself."""
    about = teaching.about
    question = "\n\n".join(f"<{part}>" for part in QUESTIONS[about.task])
    if about.task == "completion":
        return {"path": "/v1/completions", "body": {"model": model, "prompt": question}}
    system = [] if added or not teaching.instruction else [{"role": "system", "content": teaching.instruction}]
    body: dict[str, Any] = {"model": model, "messages": [*system, {"role": "user", "content": question}]}
    if about.task == "classification":
        return {"path": "/v1/classify", "body": {**body, "labels": list(about.labels)}}
    return {"path": "/v1/chat/completions", "body": body}
