"""Training: on the answers alone, normalised by token, repeatable to the byte, and loud where it goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from appliance.errors import BadInput
from appliance.ml import data, loop, machine, methods
from appliance.ml.base import Base, load_base
from appliance.ml.samples import Sample, tokenize_rows
from tests.ml.tiny import RECIPE

Train = Callable[..., tuple[bytes, list[loop.Step]]]
DTYPES = ["float32", "bfloat16"]


@pytest.fixture
def samples(base: Base, dataset: Path) -> list[Sample]:
    return tokenize_rows(data.load_rows(dataset, data.TRAIN), base.chat, max_length=128)


@pytest.fixture
def train(base_folder: Path, dataset: Path) -> Train:
    """A whole run as the worker does it: the adapter's bytes and the steps."""

    def run(**changes: Any) -> tuple[bytes, list[loop.Step]]:
        recipe = {**RECIPE, **changes}
        machine.use_determinism(recipe["seed"])
        dtype = recipe["compute_dtype"]
        base = load_base(base_folder, quantisation="nf4-double", compute_dtype=dtype, device="cpu")
        rows = tokenize_rows(data.load_rows(dataset, data.TRAIN), base.chat, max_length=recipe["max_length"])
        model = methods.attach_adapter(base, recipe)
        steps: list[loop.Step] = []
        loop.train(base, model, rows, recipe, steps.append)
        return methods.encode_adapter(model, "tiny")[0], steps

    return run


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_recipe_gives_the_same_bytes_and_another_seed_other_ones(train: Train, dtype: str) -> None:
    first, second = train(compute_dtype=dtype), train(compute_dtype=dtype)
    assert first[0] == second[0]
    assert [step.loss for step in first[1]] == [step.loss for step in second[1]]
    assert train(compute_dtype=dtype, seed=8)[0] != first[0]


def test_gradient_checkpointing_changes_memory_and_no_byte(train: Train) -> None:
    assert train(gradient_checkpointing=True)[0] == train(gradient_checkpointing=False)[0]


def test_training_lowers_the_loss_and_counts_the_answers_tokens(train: Train, base: Base, dataset: Path) -> None:
    _, steps = train(epochs=12, accumulation=1)
    rows = data.load_rows(dataset, data.TRAIN)
    assert steps[-1].loss < steps[0].loss / 2
    assert steps[-1].trained_tokens == 12 * sum(len(base.chat.encode(row.answer)) for row in rows)
    assert steps[-1].tokens == 12 * sum(len(base.chat.encode(row.prompt + row.answer)) for row in rows)
    assert [step.step for step in steps] == list(range(1, len(steps) + 1))
    assert steps[-1].steps == len(steps) == 12 * -(-len(rows) // 4)


def _reference_loss(base: Base, samples: list[Sample]) -> torch.Tensor:
    """Each sample alone, through the whole model, the labels of the prompt masked: the mean over answer tokens."""
    total, count = torch.zeros(()), 0
    for sample in samples:
        ids = torch.tensor([sample.ids])
        logits = base.model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        targets = ids[0, 1:].clone()
        trained = {place for start, stop in sample.spans for place in range(start, stop)}
        targets[[place - 1 for place in range(1, len(sample.ids)) if place not in trained]] = -100
        total = total + torch.nn.functional.cross_entropy(logits, targets, reduction="sum", ignore_index=-100)
        count += sample.trained_tokens
    return total / count


def test_loss_and_gradients_are_those_of_the_answers_alone(base: Base, samples: list[Sample]) -> None:
    """Packed, head only where there is a loss, in two parts: the same as the plain sum over whole sequences."""
    model = methods.attach_adapter(base, {**RECIPE, "dropout": "0.0"})
    parameters = methods.list_trainable(model)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.01)
    batch = samples[:7]
    answers = sum(sample.trained_tokens for sample in batch)
    loss = 0.0
    for part in loop.split_batch(batch, 4):
        part_loss = loop.answer_loss(base, part) / answers
        part_loss.backward()
        loss += part_loss.item()
    ours = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
    model.zero_grad()
    expected = _reference_loss(base, batch)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert len(ours) == len(parameters)
    for mine, parameter in zip(ours, parameters, strict=True):
        assert torch.allclose(mine, parameter.grad, atol=1e-5 + 1e-3 * parameter.grad.abs().max().item())


def test_accumulation_is_normalised_by_token_not_by_part(train: Train) -> None:
    """One batch of eight and four batches of two are the same step, however the answers' lengths fall."""
    whole, parts = (
        train(batch_size=8, accumulation=1, dropout="0.0"),
        train(batch_size=2, accumulation=4, dropout="0.0"),
    )
    assert len(whole[1]) == len(parts[1])
    for one, other in zip(whole[1], parts[1], strict=True):
        assert one.loss == pytest.approx(other.loss, rel=2e-3)


def test_a_sample_over_max_length_is_an_error_naming_its_row(train: Train) -> None:
    with pytest.raises(BadInput, match=r"dataset, row 0: expected at most 20 tokens \(max_length\), got \d+"):
        train(max_length=20)


def test_the_spans_of_a_sample_are_its_answer_and_nothing_else(base: Base, dataset: Path) -> None:
    rows = data.load_rows(dataset, data.TRAIN)
    for row, sample in zip(rows, tokenize_rows(rows, base.chat, max_length=128), strict=True):
        ((start, stop),) = sample.spans
        assert (sample.ids[:start], sample.ids[start:stop]) == (sample.prompt, tuple(base.chat.encode(row.answer)))
        assert (stop, sample.trained_tokens) == (len(sample.ids), stop - start)


def test_nothing_to_train_on_is_an_error(base: Base) -> None:
    row = data.Row(index=4, split="train", text="t", label="", prompt="<|im_start|>", answer="")
    with pytest.raises(BadInput, match="row 4: expected tokens to train on, got none"):
        tokenize_rows([row], base.chat, max_length=10)
    with pytest.raises(BadInput, match="expected rows to train on, got none"):
        tokenize_rows([], base.chat, max_length=10)


def test_a_loss_that_is_no_number_stops_the_run(base: Base, samples: list[Sample]) -> None:
    model = methods.attach_adapter(base, RECIPE)
    with torch.no_grad():
        methods.list_trainable(model)[0].fill_(float("nan"))
    with pytest.raises(BadInput, match="step 1: expected a finite loss, got nan") as caught:
        loop.train(base, model, samples, RECIPE, lambda step: None)
    assert caught.value.code == "diverged"


def test_only_the_adapter_is_trained(base: Base) -> None:
    model = methods.attach_adapter(base, {**RECIPE, "target_modules": ["q_proj", "v_proj"]})
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(names) == 2 * 2 * 2, "A and B of two projections in two layers"
    assert all(".lora_A." in name or ".lora_B." in name for name in names)


def test_the_files_are_what_peft_reads(base: Base, samples: list[Sample], tmp_path: Path) -> None:
    from peft import PeftConfig

    model = methods.attach_adapter(base, RECIPE)
    weights, config = methods.encode_adapter(model, "tiny")
    (tmp_path / "adapter_config.json").write_bytes(config)
    read = PeftConfig.from_pretrained(str(tmp_path))
    assert (read.r, read.lora_alpha, sorted(read.target_modules)) == (8, 16, sorted(RECIPE["target_modules"]))
    assert json.loads(config)["base_model_name_or_path"] == "tiny", "no path of the machine that trained"
    assert len(safetensors.torch.load(weights)) == 2 * 7 * 2


def test_an_unknown_method_is_refused(base: Base) -> None:
    with pytest.raises(BadInput, match=r"recipe, method: expected one of qlora, .*, got 'vera'"):
        methods.attach_adapter(base, {**RECIPE, "method": "vera"})


def test_the_rate_rises_and_falls() -> None:
    rates = [loop.schedule(number, 20, 4) for number in range(20)]
    assert rates[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0.1 <= rates[-1] < 0.12
    assert loop.schedule(0, 1, 0) == 1.0


def test_every_epoch_sees_every_sample_once_in_a_new_order(samples: list[Sample]) -> None:
    plan = [sample.index for batch in loop.plan_steps(samples, RECIPE) for sample in batch]
    first, second = plan[: len(samples)], plan[len(samples) :]
    assert sorted(first) == sorted(second) == [sample.index for sample in samples]
    assert first != second
    parts = list(loop.split_batch(samples, 4))
    assert sorted(s.index for part in parts for s in part) == [sample.index for sample in samples]
    assert max(len(part) for part in parts) == 4


def test_a_part_holds_no_more_tokens_than_fit(samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "PACK_TOKENS", 100)
    sizes = [sum(len(sample.ids) for sample in part) for part in loop.split_batch(samples, 64)]
    assert max(sizes) <= 100
    assert min(sizes) > 0
