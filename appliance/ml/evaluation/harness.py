"""Evaluation by external programs, each from a folder that the site provides.

These are tasks of EleutherAI's lm-evaluation-harness and metrics of Hugging Face's evaluate. Both run code of their
folder. So only a separate worker imports this module, in the sandbox and without a network, and the appliance does not
depend on the two libraries.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.domain.evaluation.items import SCALE, Answer, EvaluationItem, Slices, encode_items
from appliance.errors import BadInput, Unavailable
from appliance.ml.data.rows import Sample
from appliance.ml.evaluation.evaluation import Report, measure_continuations, scale
from appliance.ml.inference.adapters import AdapterSlots
from appliance.ml.inference.request import InferenceRequest
from appliance.ml.inference.sampling import draw_tokens
from appliance.ml.model.base import LoadedBase

MISSING = "harness-missing"
RIGHT = ("acc", "exact_match")
"""Metrics of a task that decide whether an item is right; the first one that a task has is used."""
MAX_ANSWER_TOKENS = 256
MOST_NAME = 32
FALLS = "minus_"
"""Prefix of metrics of which less is better; the negative value is stored, so that more is better for all."""


@dataclass(frozen=True)
class TaskResult:
    """The result of one row of a task: `key` identifies the row in the task; `part` is the task's name."""

    key: str
    part: str
    scores: Mapping[str, int]
    right: bool | None


def evaluate_task(
    folder: Path, name: str, base: LoadedBase, slots: AdapterSlots | None, report: Report
) -> list[TaskResult]:
    """Return the model's result for each row of a task or group of tasks, named by a YAML file of the folder.

    Prompts go through the base's own chat template, as in serving.

    Raises:
        BadInput: the task is unknown or has no usable numbers.
        Unavailable: the library is missing.
    """
    with _require_library("lm_eval", "lm-eval"):
        from lm_eval.evaluator import evaluate
        from lm_eval.tasks import TaskManager
    with _change_directory(folder):
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        if name not in manager.all_tasks:
            known = ", ".join(manager.all_tasks) or "none"
            raise BadInput(f"harness {name}: expected a YAML file that names this task, got those of {known}")
        loaded = manager.load([name])
        for task in loaded["tasks"].values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=0)
        model = _make_model(base, slots, report)
        found = evaluate(lm=model, task_dict=loaded, bootstrap_iters=0, apply_chat_template=True)
    if found is None:
        raise BadInput(f"harness {name}: expected results, got none")
    rows = [row for part in sorted(found["samples"]) for row in _read_samples(found, part)]
    if not rows or not all(row.scores for row in rows):
        raise BadInput(f"harness {name}: expected rows with a number for each, got {len(rows)} rows, or no numbers")
    return rows


def _read_samples(found: Mapping[str, Any], part: str) -> Iterator[TaskResult]:
    """Yield the results of one task.

    With several filters, a metric's name ends with the filter's; the first filter decides whether an item is right.
    """
    by_row: dict[int, dict[str, float]] = {}
    rights: dict[int, bool] = {}
    better = found["higher_is_better"].get(part, {})
    filters = list(dict.fromkeys(sample["filter"] for sample in found["samples"][part]))
    for sample in found["samples"][part]:
        row = by_row.setdefault(sample["doc_id"], {})
        for metric in sample["metrics"]:
            value = sample[metric]
            if not isinstance(value, int | float):
                continue  # what is only summed up over a whole task, as a perplexity's parts
            falls = better.get(metric) is False
            named = metric if len(filters) == 1 else f"{metric}_{sample['filter']}"
            row[f"{FALLS if falls else ''}{named}"] = -float(value) if falls else float(value)
            if sample["filter"] == filters[0] and metric in RIGHT and value in (0, 1):
                rights.setdefault(sample["doc_id"], bool(value))
    for key, values in sorted(by_row.items()):
        what = f"task {part}, row {key}"
        yield TaskResult(f"{part}\0{key}", part, _score(values, what), rights.get(key))


def _score(values: Mapping[str, float], what: str) -> dict[str, int]:
    """Return metrics as scores: names in the required form, numbers in millionths."""
    scores: dict[str, int] = {}
    for name, value in values.items():
        if not math.isfinite(value):
            raise BadInput(f"{what}, {name}: expected a finite number, got {value}")
        form = re.sub(r"[^a-z0-9_]+", "_", name.lower()).lstrip("_0123456789")[:MOST_NAME]
        if not form or form in scores:
            raise BadInput(f"{what}, {name}: expected a metric's name of its own in lower-case letters and digits")
        scores[form] = scale(value)
    return scores


def write_task_items(set_name: str, digest: str, base: Sequence[TaskResult], adapter: Sequence[TaskResult]) -> bytes:
    """Return the item lines of a harness task.

    A row's digest covers the set's name and digest and the row's key; its task is its column.
    """
    if [row.key for row in base] != [row.key for row in adapter]:
        raise BadInput(f"{set_name}: expected the same rows of base and adapter, got others")
    return encode_items(
        EvaluationItem(
            adapter=Answer(confidence=None, label=None, right=theirs.right, scores=dict(theirs.scores)),
            base=Answer(confidence=None, label=None, right=ours.right, scores=dict(ours.scores)),
            cluster=None,
            row=hashlib.sha256(f"{set_name}\0{digest}\0{ours.key}".encode()).hexdigest(),
            slices=Slices(column=ours.part[:256], label=None, length=None),
        )
        for ours, theirs in zip(base, adapter, strict=True)
    )


def measure_answers(folder: Path, name: str, expected: Sequence[str], answered: Sequence[str]) -> list[dict[str, int]]:
    """Return the scores of each response by the metric module NAME.py of the folder.

    Raises:
        BadInput: the metric returns no number for a response.
        Unavailable: the library is missing.
    """
    with _require_library("evaluate", "evaluate"):
        import evaluate
    module = evaluate.load(str(folder / f"{name}.py"), keep_in_memory=True)
    scores = []
    for number, (wanted, got) in enumerate(zip(expected, answered, strict=True), start=1):
        values = module.compute(predictions=[got], references=[wanted]) or {}
        numbers = {key: float(value) for key, value in values.items() if _is_number(value)}
        scores.append(_score(numbers, f"metric {name}, answer {number}"))
    if not all(scores):
        raise BadInput(f"metric {name}: expected a number for each answer, got none")
    return scores


def write_metric_items(
    items: Sequence[EvaluationItem], base: Sequence[Mapping[str, int]], adapter: Sequence[Mapping[str, int]]
) -> bytes:
    """Return the item lines of a metric: the held-out rows with generated responses, with the metric's scores."""
    return encode_items(
        EvaluationItem(
            adapter=Answer(confidence=None, label=None, right=None, scores=dict(theirs)),
            base=Answer(confidence=None, label=None, right=None, scores=dict(ours)),
            cluster=item.cluster,
            row=item.row,
            slices=item.slices,
        )
        for item, ours, theirs in zip(items, base, adapter, strict=True)
    )


def summarize_scores(answers: Sequence[Mapping[str, int]]) -> dict[str, str | int]:
    """Return the number of rows and the mean of each score, as decimal text."""
    names = answers[0].keys()
    means = {name: sum(one[name] for one in answers) / (len(answers) * SCALE) for name in names}
    return {"rows": len(answers), **{name: f"{mean:.6f}" for name, mean in means.items()}}


def _is_number(value: Any) -> bool:
    """Return True for a number, including numpy's."""
    return isinstance(value, int | float) or hasattr(value, "__float__")


@contextmanager
def _require_library(module: str, package: str) -> Iterator[None]:
    """Turn the failure to import an optional library within the block into Unavailable."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise Unavailable(
            f"{package}: expected this library in the appliance's Python or in the folder of the setting "
            f"harness_packages, got no module {error.name or module}: pip install 'appliance[harness]'",
            code=MISSING,
        ) from None


@contextmanager
def _change_directory(folder: Path) -> Iterator[None]:
    """Make `folder` the current directory within the block, so that a task's files are found beside its YAML file."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _make_model(base: LoadedBase, slots: AdapterSlots | None, report: Report) -> Any:
    """Return the model in the interface of lm-eval.

    The class is defined here, because its base class is in a library that may be missing.
    """
    from lm_eval.api.model import LM

    chat = base.chat

    class Model(LM):  # type: ignore[misc] # the library has no types that mypy reads
        tokenizer_name = "appliance"

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return _score_continuations(base, [_encode_pair(base, *request.args[:2]) for request in requests], report)

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            raise BadInput("harness, output_type: expected one with a number for each row, got loglikelihood_rolling")

        def generate_until(self, requests: list[Any]) -> list[str]:
            return [_generate(base, slots, request.args[0], request.args[1], report) for request in requests]

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            if not add_generation_prompt:
                raise BadInput("harness, gen_prefix: expected none, since the base's template begins the answer")
            return chat.render(chat_history)

    return Model()


def _encode_pair(base: LoadedBase, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Return the tokens of context and continuation, like the harness's own models.

    Spaces at the context's end belong to the continuation.
    """
    if not context:
        return [_first_token(base)], base.chat.encode(continuation)
    kept = context.rstrip(" ")
    whole, before = base.chat.encode(context + continuation), base.chat.encode(kept)
    return before, whole[len(before) :]


def _first_token(base: LoadedBase) -> int:
    """Return the token that precedes a text without context."""
    for name in ("bos_token", "eos_token"):
        number = base.chat.tokenizer.token_to_id(base.chat.variables.get(name, ""))
        if number is not None:
            return int(number)
    raise BadInput("harness: expected a base with a token for a text's beginning or end, got none")


def _score_continuations(
    base: LoadedBase, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], report: Report
) -> list[tuple[float, bool]]:
    """Return the log-likelihood of each continuation, and True if each of its tokens is the most likely one.

    A context that is too long loses its first tokens.
    """
    samples = []
    for number, (before, after) in enumerate(pairs):
        if not after or len(after) >= base.context_length:
            raise BadInput(
                f"harness: expected a continuation of 1 to {base.context_length - 1} tokens, got {len(after)}"
            )
        ids = [*before, *after][-base.context_length :]
        samples.append(Sample(number, tuple(ids), ((len(ids) - len(after), len(ids)),)))
    return [(-loss, likeliest) for loss, likeliest in measure_continuations(base, samples, report)]


def _generate(
    base: LoadedBase, slots: AdapterSlots | None, context: str, terms: Mapping[str, Any], report: Report
) -> str:
    """Return the greedy response up to one of the stop texts, which is excluded."""
    if terms.get("do_sample") and float(terms.get("temperature") or 0) > 0:
        raise BadInput("harness, generation_kwargs: expected greedy answers (do_sample: false), got others")
    until = terms.get("until") or []
    ends = [until] if isinstance(until, str) else list(until)
    limit = min(int(terms.get("max_gen_toks") or MAX_ANSWER_TOKENS), base.context_length - 1)
    prompt = base.chat.encode(context)[-(base.context_length - limit) :]
    ids: list[int] = []
    text = ""
    for token in draw_tokens(base, slots, prompt, InferenceRequest((), limit), limit):
        if token in base.chat.stop_ids():
            break
        ids.append(token)
        text = base.chat.decode(ids)
        if any(end and end in text for end in ends):
            break
    report(1, len(prompt) + len(ids))
    return min((text.split(end)[0] for end in ends if end and end in text), key=len, default=text)
