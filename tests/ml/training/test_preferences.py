"""Direct preference optimisation: the paper's loss and gradient, the base as reference, and the same bytes again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import log_softmax, logsigmoid

from appliance.domain.data.kinds import DatasetDescription
from appliance.ml.data import rows as data
from appliance.ml.data.rows import Sample, tokenize_rows
from appliance.ml.data.sources import parse_source
from appliance.ml.evaluation import evaluation
from appliance.ml.inference.adapters import AdapterSlots
from appliance.ml.model import machine
from appliance.ml.model.base import LoadedBase, load_base
from appliance.ml.training import loop, methods
from appliance.ml.training.checkpoint import TrainingState, encode_checkpoint
from appliance.ml.training.loss import adapter_off
from scripts.kit.tiny_model import RECIPE, clauses

BETA = 0.1
PREFERRING = RECIPE | {"beta": "0.1", "dropout": "0.0", "learning_rate": "0.003", "epochs": 3, "save_steps": 2}
Load = Callable[[str], LoadedBase]


@pytest.fixture
def load(base_folder: Path) -> Load:
    def run(method: str = "qlora") -> LoadedBase:
        machine.use_determinism(7)
        may_repack = method != "dora"
        return load_base(
            base_folder, quantisation="nf4-double", compute_dtype="float32", device="cpu", may_repack=may_repack
        )

    return run


def pairs(base: LoadedBase) -> list[Sample]:
    """Rows whose chosen answer has one word more, so that sequences differ in length."""
    texts = [text for text, _ in clauses(12)]
    records = [{"prompt": text, "chosen": "pay the fee now", "rejected": text.split()[0]} for text in texts]
    lines = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    columns = {part: part for part in ("prompt", "chosen", "rejected")}
    sides = data.split_sources("preference", parse_source(lines, "jsonl", "preference", columns), 1, Fraction(1, 4))
    rows = data.render_rows(sides, base.chat, "preference", instruction="")
    return tokenize_rows(rows, base.chat, max_length=128)


def recipe_of(method: str) -> dict[str, Any]:
    modules = RECIPE["target_modules"]
    low = {"rank": 0, "alpha": 0} if method == "ia3" else {}
    return PREFERRING | {"method": method, "target_modules": modules} | low


def log_probability(base: LoadedBase, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Of one sequence alone, by the library's modules and torch's own softmax."""
    logits = base.model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0].float()
    logs = log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
    return logs[range(len(answer)), answer].sum()


def formula(base: LoadedBase, samples: list[Sample]) -> torch.Tensor:
    """TRL's: -logsigmoid(beta ((log pi(c) - log pi(r)) - (log ref(c) - log ref(r)))), a mean over rows."""
    losses = []
    for sample in samples:
        start = sample.spans[0][0]
        prompt, chosen, rejected = list(sample.ids[:start]), list(sample.ids[start:]), list(sample.rejected)
        policy = log_probability(base, prompt, chosen) - log_probability(base, prompt, rejected)
        with torch.no_grad(), adapter_off(base.model):
            reference = log_probability(base, prompt, chosen) - log_probability(base, prompt, rejected)
        losses.append(-logsigmoid(BETA * (policy - reference)))
    return torch.stack(losses).mean()


@pytest.mark.thorough
@pytest.mark.parametrize("method", ["qlora", "rslora", "lora-plus", "dora", "ia3", "olora"])
def test_loss_and_gradient_of_a_step_are_those_of_the_formula(load: Load, method: str) -> None:
    base, recipe = load(method), recipe_of(method)
    samples = pairs(base)[:6]
    attached = methods.attach_adapter(base, recipe)
    weights = methods.name_trainable(attached.model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in weights.values():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    decoder = loop.begin_decoder(base, recipe)
    assert (decoder is not None) == (method in ("qlora", "rslora", "lora-plus"))
    parts = [loop.part_losses(base, decoder, part, recipe) for part in loop.split_batch(samples, 4)]
    loss = torch.cat([losses for losses, _ in parts]).mean()
    gradients = torch.autograd.grad(loss, list(weights.values()))
    assert all(weight.requires_grad for weight in weights.values()), "the reference leaves what is trained as it was"
    expected = formula(base, samples)
    wanted = torch.autograd.grad(expected, list(weights.values()))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert abs(loss.item() - math.log(2)) > 1e-3, "the adapter moved"
    largest = max(one.abs().max().item() for one in wanted)
    for got, one in zip(gradients, wanted, strict=True):
        assert torch.allclose(got, one, atol=2e-3 * largest), (got - one).abs().max() / largest


def train(base: LoadedBase, **options: Any) -> tuple[methods.TrainableModel, list[loop.StepMeasurement], TrainingState]:
    attached, steps = methods.attach_adapter(base, PREFERRING), list[loop.StepMeasurement]()
    samples = pairs(base)
    training = loop.train(base, attached, samples, PREFERRING, steps.append, **options)
    return attached, steps, training


def test_a_run_begins_at_the_base_itself_and_comes_to_prefer_what_was_chosen(load: Load) -> None:
    _, steps, _ = train(load("qlora"))
    assert (steps[0].loss, steps[0].margin, steps[0].accuracy) == (pytest.approx(math.log(2), abs=1e-7), 0.0, 0.0)
    assert steps[-1].accuracy == 1.0 and steps[-1].margin is not None and steps[-1].margin > 0.2
    assert steps[-1].loss < 0.6
    assert steps[-1].loss == pytest.approx(sum(loss for _, loss in steps[-1].row_losses) / len(steps[-1].row_losses))


@pytest.mark.thorough
def test_a_resumed_run_has_the_bytes_of_one_that_was_not_interrupted(load: Load) -> None:
    kept: list[bytes] = []
    whole, steps, training = train(load("qlora"), save_checkpoint=lambda one: kept.append(encode_checkpoint(one)))
    resumed, again, end = train(load("qlora"), start=kept[0])
    assert 0 < len(again) < len(steps)
    assert encode_checkpoint(end) == encode_checkpoint(training)
    assert methods.encode_adapter(resumed, "tiny") == methods.encode_adapter(whole, "tiny")
    told = [(step.loss, step.margin, step.accuracy, step.tokens) for step in steps]
    assert told[-len(again) :] == [(step.loss, step.margin, step.accuracy, step.tokens) for step in again]


@pytest.mark.thorough
def test_an_evaluation_prefers_by_the_reward_over_the_base_and_the_base_by_likelihood(
    load: Load, base_folder: Path
) -> None:
    attached, _, _ = train(load("qlora"))
    weights, config = methods.encode_adapter(attached, "tiny")
    base = load_base(base_folder, quantisation="nf4-double", compute_dtype="float32", device="cpu", own_layers=True)
    samples, about = pairs(base), DatasetDescription("preference", ())
    slots = AdapterSlots(base)
    slots.load("adapter", config, weights)
    untrained = evaluation.evaluate(base, slots, about, [], samples, lambda rows, tokens: None)
    with slots.using("adapter"):
        trained = evaluation.evaluate(base, slots, about, [], samples, lambda rows, tokens: None)
    start = [sample.spans[0][0] for sample in samples]
    bare = [
        log_probability(base, list(one.ids[:at]), list(one.ids[at:]))
        - log_probability(base, list(one.ids[:at]), list(one.rejected))
        for one, at in zip(samples, start, strict=True)
    ]
    got = [answer.scores["margin"] / 1e6 for answer in untrained.answers]
    assert got == pytest.approx([one.item() for one in bare], abs=1e-2)
    assert [answer.right for answer in untrained.answers] == [margin > 0 for margin in got]
    assert trained.metrics["accuracy"] == "1.000000" and float(trained.metrics["margin"]) > 2
