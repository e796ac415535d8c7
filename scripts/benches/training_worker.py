"""Runs one training, ours or a peer's, in a process of its own, and prints its figures as a JSON object.

Ours is the bare loop: the functions that the training worker calls, without service and sandbox. The peers run in the
environment that `scripts/bench` makes for them. All three use transformers' Trainer, so a hook in it takes their times.
Every run counts the tokens of its rows without padding.
"""

from __future__ import annotations

import time

BEGAN = time.perf_counter()

import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

Task = dict[str, Any]


def main() -> None:
    task: Task = json.loads(sys.argv[1])
    kinds = {"ours": ours, "first": ours, "evaluate": evaluate, "bare": bare, "load": load, "limit": limit}
    found = (kinds | {"trl": trl, "trainer": trainer, "soup": soup})[task["kind"]](task)
    print(json.dumps({**found, "peak_bytes": peak_bytes(task)}), flush=True)


def peak_bytes(task: Task) -> int:
    import torch

    if task["device"] == "cuda":
        return torch.cuda.max_memory_allocated()
    with open("/proc/self/status", encoding="ascii") as stream:
        return next(int(line.split()[1]) * 1024 for line in stream if line.startswith("VmHWM:"))


def ours(task: Task) -> dict[str, Any]:
    # `machine` is imported before torch, since it sets what torch reads at its import.
    from appliance.ml.model import machine
    from appliance.ml.training import methods  # isort: skip
    import torch

    from appliance.ml.training.loop import StepMeasurement, begin_decoder, sample_losses, train

    recipe = task["recipe"]
    machine.hold_memory()
    base = load_base_of(recipe, task["base"])
    attached = methods.attach_adapter(base, recipe)
    times, tokens = [time.perf_counter()], [0]

    def report(step: StepMeasurement) -> None:
        times.append(time.perf_counter())
        tokens.append(step.tokens)

    train(base, attached, _read_samples(base.chat, task, task["rows"]), recipe, report)
    if task["kind"] == "first":
        return {"first_step_s": times[1] - BEGAN}
    samples = _read_samples(base.chat, task, task["evaluated"])
    if not samples:
        return describe_run(task, times, tokens, None)
    with torch.no_grad():
        loss = sum(float(sample_losses(base, begin_decoder(base, recipe), [sample])[0]) for sample in samples) / sum(
            sample.trained_tokens for sample in samples
        )
    return describe_run(task, times, tokens, loss)


def evaluate(task: Task) -> dict[str, Any]:
    """Compute loss and likeliest label of every row on the base, by the function that evaluations use.

    The rows of one step come first and are not counted.
    """
    from appliance.ml.evaluation.labels import LabelTree, evaluate_rows

    recipe = task["recipe"]
    base = load_base_of(recipe, task["base"], own_layers=True)
    samples = _read_samples(base.chat, task, task["rows"])
    tree = LabelTree([base.chat.encode(base.chat.answer(label)) for label in task["labels"]])

    def evaluate(some: list[Any]) -> int:
        """Evaluate rows, and return the number of their tokens."""
        evaluated = evaluate_rows(
            base, some, [one.spans[0][0] for one in some], [tree] * len(some), lambda rows, tokens: None
        )
        assert [one.index for one in evaluated] == [one.index for one in some]
        return sum(len(one.ids) for one in some)

    evaluate(samples[: recipe["batch_size"]])
    began = time.perf_counter()
    tokens = evaluate(samples)
    return {"tokens_a_second": tokens / (time.perf_counter() - began), "loss": None}


def load_base_of(recipe: dict[str, Any], folder: str, *, own_layers: bool = False) -> Any:
    from appliance.ml.model import machine
    from appliance.ml.model.base import load_base

    machine.use_determinism(recipe["seed"])
    return load_base(
        Path(folder),
        quantisation=recipe["quantisation"],
        compute_dtype=recipe["compute_dtype"],
        device=recipe["device"],
        own_layers=own_layers,
    )


def _read_samples(chat: Any, task: Task, path: str) -> list[Any]:
    from appliance.ml.data.rows import RenderedRow, Sample, tokenize_row

    def tokenize(index: int, row: dict[str, str]) -> Sample:
        if cut := task.get("cut"):
            # A row of exactly `cut` tokens, of which the last eighth is trained.
            return Sample(index, tuple(chat.encode(row["text"])[:cut]), ((cut - cut // 8, cut),))
        prompt = chat.render([{"role": "user", "content": row["text"]}])
        parts = ((prompt, chat.answer(row["label"])),)
        read = RenderedRow(index, "train", row["text"], row["label"], parts)
        return tokenize_row(read, chat, task["recipe"]["max_length"], "row")

    lines = Path(path).read_text("utf-8").splitlines()
    return [tokenize(index, json.loads(line)) for index, line in enumerate(lines)]


def bare(task: Task) -> dict[str, Any]:
    """Train as the training worker does with a recipe, a sealed base and a sealed dataset, without a service."""
    from appliance.ml.training import methods
    from appliance.ml.training.loop import train
    from appliance.worker.training import prepare

    base, attached, samples, _ = prepare(task)
    train(base, attached, samples, task["recipe"], lambda step: None)
    made = methods.encode_adapter(attached, task["recipe"]["base"])
    for name, data in zip(methods.name_files(task["recipe"]["method"]), made, strict=True):
        (Path(task["output"]) / name).write_bytes(data)
    return {}


def load(task: Task) -> dict[str, Any]:
    """Load the base with transformers, as every trainer must before its first step."""
    load_model(task)
    return {"load_s": time.perf_counter() - BEGAN}


def limit(task: Task) -> dict[str, Any]:
    """Measure the best rate at which this machine multiplies bf16 matrices, in operations a second."""
    import torch

    best = 0.0
    for size in (512, 1024, 2048, 4096):
        left, right = (torch.randn(size, size, dtype=torch.bfloat16, device=task["device"]) for _ in range(2))
        for other in (right, right.T):
            for _ in range(6):
                began = time.perf_counter()
                result = left @ other
                if task["device"] == "cuda":
                    torch.cuda.synchronize()
                best = max(best, 2 * size**3 / (time.perf_counter() - began))
            del result
    return {"operations_a_second": best}


def trl(task: Task) -> dict[str, Any]:
    """Train with TRL's SFTTrainer: by its defaults (every token, no packing), or packed with a loss on answers only."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    packed = {"packing": True, "max_length": 1024, "completion_only_loss": True} if task["best"] else {}
    size = 1 if task["best"] else task["recipe"]["batch_size"]
    rows = [
        {"prompt": turns[:1], "completion": turns[1:]} if task["best"] else {"messages": turns}
        for turns in _conversations(task["rows"])
    ]
    model, recorder = load_model(task), Recorder()
    with tempfile.TemporaryDirectory() as output:
        made = SFTTrainer(
            model=model,
            args=SFTConfig(**make_arguments(task, output), per_device_train_batch_size=size, **packed),
            train_dataset=Dataset.from_list(rows),
            processing_class=load_tokenizer(task),
            peft_config=make_lora(task),
        )
        made.train()
    return recorder.describe(task, _evaluate(made.model, task))


def trainer(task: Task) -> dict[str, Any]:
    """Train with transformers' Trainer and peft, padded to the longest row, with a loss on answers only."""
    import torch
    from peft import get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    tokenizer = load_tokenizer(task)
    rows = [_tokenize(turns, tokenizer) for turns in _conversations(task["rows"])]
    model, recorder = get_peft_model(load_model(task), make_lora(task)), Recorder()
    with tempfile.TemporaryDirectory() as output:
        arguments = TrainingArguments(
            **make_arguments(task, output), per_device_train_batch_size=task["recipe"]["batch_size"]
        )
        collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
        Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator).train()
    torch.set_grad_enabled(False)
    return recorder.describe(task, _evaluate(model, task))


def soup(task: Task) -> dict[str, Any]:
    """Train with soup-cli by its own command and a settings file."""
    import yaml
    from soup_cli.cli import app

    recipe = task["recipe"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HOME"] = name
        os.chdir(folder)
        lines = [json.dumps({"messages": turns}) for turns in _conversations(task["rows"])]
        (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
        settings = {
            "base": task["base"],
            "task": "sft",
            "data": {"train": "rows.jsonl", "format": "chatml", "max_length": recipe["max_length"], "val_split": 0.0},
            "training": {
                "epochs": 1,
                "lr": float(recipe["learning_rate"]),
                "batch_size": recipe["batch_size"],
                "gradient_accumulation_steps": 1,
                "quantization": "4bit",
                "lora": {"r": recipe["rank"], "alpha": recipe["alpha"], "target_modules": recipe["target_modules"]},
            },
            "output": "output",
        }
        (folder / "soup.yaml").write_text(yaml.safe_dump(settings), "utf-8")
        recorder = Recorder()
        app(["--no-telemetry", "--no-audit-log", "train", "--config", "soup.yaml", "--yes"], standalone_mode=False)
    return recorder.describe(task, None)


class Recorder:
    """The time at the end of each optimiser step, and the number of tokens without padding until then."""

    def __init__(self) -> None:
        import transformers

        self._times, self._tokens, total = [], [], [0]
        step, ended = transformers.Trainer.training_step, transformers.trainer_callback.CallbackHandler.on_step_end

        def training_step(made: Any, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            if not self._times:
                self._times, self._tokens = [time.perf_counter()], [0]
            mask = inputs.get("attention_mask")
            total[0] += int(mask.sum()) if mask is not None else inputs["input_ids"].numel()
            return step(made, model, inputs, *rest, **more)

        def on_step_end(handler: Any, *rest: Any, **more: Any) -> Any:
            self._times.append(time.perf_counter())
            self._tokens.append(total[0])
            return ended(handler, *rest, **more)

        transformers.Trainer.training_step = training_step
        transformers.trainer_callback.CallbackHandler.on_step_end = on_step_end

    def describe(self, task: Task, loss: float | None) -> dict[str, Any]:
        return describe_run(task, self._times, self._tokens, loss)


WARM_UP = 2


def describe_run(task: Task, times: list[float], tokens: list[int], loss: float | None) -> dict[str, Any]:
    # The first steps are not counted, since allocators and caches are still filling.
    first = task.get("warm_up", WARM_UP)
    if len(times) - 1 <= first:
        raise RuntimeError(f"expected more than {first} steps, which are not counted, got {len(times) - 1}")
    rate = (tokens[-1] - tokens[first]) / (times[-1] - times[first])
    return {"tokens_a_second": rate, "first_step_s": times[1] - BEGAN, "loss": loss, "steps": len(times) - 1}


def _conversations(path: str) -> list[list[dict[str, str]]]:
    rows = [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]
    return [[{"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["label"]}] for row in rows]


def load_model(task: Task) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    return AutoModelForCausalLM.from_pretrained(
        task["base"],
        local_files_only=True,
        dtype=torch.bfloat16,
        device_map={"": task["device"]},
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
    )


def load_tokenizer(task: Task) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(task["base"], local_files_only=True)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def make_lora(task: Task) -> Any:
    from peft import LoraConfig

    recipe = task["recipe"]
    return LoraConfig(
        r=recipe["rank"], lora_alpha=recipe["alpha"], target_modules=recipe["target_modules"], task_type="CAUSAL_LM"
    )


def make_arguments(task: Task, output: str) -> dict[str, Any]:
    recipe = task["recipe"]
    return {
        "output_dir": output,
        "num_train_epochs": 1,
        "learning_rate": float(recipe["learning_rate"]),
        "lr_scheduler_type": "cosine",
        "warmup_steps": 1,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": task["device"] == "cpu",
        "bf16": True,
        "gradient_checkpointing": recipe["gradient_checkpointing"] != "none",
        "seed": recipe["seed"],
    }


def _tokenize(turns: list[dict[str, str]], tokenizer: Any) -> dict[str, list[int]]:
    prompt = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer = tokenizer(turns[1]["content"] + "<|im_end|>", add_special_tokens=False)["input_ids"]
    return {
        "input_ids": ids + answer,
        "attention_mask": [1] * len(ids + answer),
        "labels": [-100] * len(ids) + answer,
    }


def _evaluate(model: Any, task: Task) -> float | None:
    """Return the mean loss over the answers' tokens of held-out rows, or None without such rows."""
    import torch

    if not _conversations(task["evaluated"]):
        return None
    tokenizer, total, count = load_tokenizer(task), 0.0, 0
    model.eval()
    with torch.no_grad():
        for turns in _conversations(task["evaluated"]):
            row = {name: torch.tensor([ids], device=model.device) for name, ids in _tokenize(turns, tokenizer).items()}
            tokens = int((row["labels"] != -100).sum())
            total += float(model(**row).loss) * tokens
            count += tokens
    return total / count


if __name__ == "__main__":
    main()
