"""Runs one training on preferences, ours or TRL's, in a process of its own, and prints its figures as a JSON object."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scripts.benches import training_worker as shared

Task = dict[str, Any]


def main() -> None:
    task: Task = json.loads(sys.argv[1])
    found = {"ours": ours, "trl": trl}[task["kind"]](task)
    print(json.dumps({**found, "peak_bytes": shared.peak_bytes(task)}), flush=True)


def ours(task: Task) -> dict[str, Any]:
    from appliance.ml.model import machine
    from appliance.ml.training import methods  # isort: skip
    from appliance.domain.data.kinds import map_columns
    from appliance.ml.data import rows as data
    from appliance.ml.data.rows import tokenize_rows
    from appliance.ml.data.sources import parse_source
    from appliance.ml.training.loop import StepMeasurement, train

    recipe = task["recipe"]
    machine.hold_memory()
    base = shared.load_base_of(recipe, task["base"])
    attached = methods.attach_adapter(base, recipe)
    sources = parse_source(Path(task["rows"]).read_bytes(), "jsonl", "preference", map_columns("preference", {}))
    rendered = data.render_rows(
        data.hold_out_sources(sources), base.chat, "preference", instruction="", is_validation_set=True
    )
    samples = tokenize_rows(rendered, base.chat, max_length=recipe["max_length"])
    # Tokens are counted as TRL counts them: the prompt with each of its answers.
    sizes = {one.index: one.tokens + one.spans[0][0] for one in samples}
    times, tokens, losses = [time.perf_counter()], [0], [0.0]

    def report(step: StepMeasurement) -> None:
        times.append(time.perf_counter())
        tokens.append(tokens[-1] + sum(sizes[row] for row, _ in step.row_losses))
        losses.append(step.loss)

    train(base, attached, samples, recipe, report)
    return shared.describe_run(task, times, tokens, losses[-1])


def trl(task: Task) -> dict[str, Any]:
    """Train with TRL's DPOTrainer and our settings. The base without the adapter is the reference, as in ours."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    recipe = task["recipe"]
    rows = [json.loads(line) for line in Path(task["rows"]).read_text("utf-8").splitlines()]
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    talks = [{part: [{"role": role, "content": one[part]}] for part, role in roles.items()} for one in rows]
    model, recorder = shared.load_model(task), shared.Recorder()
    with tempfile.TemporaryDirectory() as output:
        made = DPOTrainer(
            model=model,
            args=DPOConfig(
                **shared.make_arguments(task, output),
                per_device_train_batch_size=recipe["batch_size"],
                beta=float(recipe["beta"]),
                max_length=recipe["max_length"],
            ),
            train_dataset=Dataset.from_list(talks),
            processing_class=shared.load_tokenizer(task),
            peft_config=shared.make_lora(task),
        )
        made.train()
    losses = [one["loss"] for one in made.state.log_history if "loss" in one]
    return recorder.describe(task, losses[-1])


if __name__ == "__main__":
    main()
