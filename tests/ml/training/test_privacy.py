"""Private steps: each row's gradient is clipped, the noise is the secret's, and nothing says which rows were drawn."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from appliance.errors import BadInput
from appliance.formats.core.sealed import Keystream
from appliance.ml.data import rows as data
from appliance.ml.data.rows import Sample, tokenize_rows
from appliance.ml.model import machine
from appliance.ml.model.base import LoadedBase, load_base
from appliance.ml.training import loop, methods, privacy
from appliance.ml.training.checkpoint import TrainingState, encode_checkpoint
from scripts.kit.tiny_model import RECIPE

SECRET, OTHER = bytes(range(32)), bytes(32)
NOISY = {"noise": "1.0", "clip": "0.5", "epsilon": "5.0", "delta": "0.001"}
QUIET = NOISY | {"noise": "0.000001"}
PRIVATE: dict[str, Any] = RECIPE | {
    "privacy": NOISY, "dropout": "0.0", "max_grad_norm": "0.0", "save_steps": 1, "batch_size": 4,
    "epochs": 1,
    "gradient_accumulation_steps": 1,
}  # fmt: skip
Prepare = Callable[..., tuple[LoadedBase, methods.TrainableModel, list[Sample]]]


@pytest.fixture
def prepare(base_folder: Path, dataset: Path) -> Prepare:
    def run(recipe: dict[str, Any]) -> tuple[LoadedBase, methods.TrainableModel, list[Sample]]:
        machine.use_determinism(recipe["seed"])
        quantisation = recipe["quantisation"]
        base = load_base(base_folder, quantisation=quantisation, compute_dtype="float32", device="cpu")
        samples = tokenize_rows(data.load_rows(dataset, data.TRAIN), base.chat, max_length=128)[:12]
        return base, methods.attach_adapter(base, recipe), samples

    return run


def row_gradient(base: LoadedBase, weights: list[torch.nn.Parameter], sample: Sample) -> list[torch.Tensor]:
    """Of one row's mean loss, by the library's modules and torch's own autograd."""
    logits = base.model(input_ids=torch.tensor([list(sample.ids)]), use_cache=False).logits[0].float()
    places = [place for start, stop in sample.spans for place in range(start, stop)]
    loss = cross_entropy(logits[[place - 1 for place in places]], torch.tensor([sample.ids[at] for at in places]))
    return list(torch.autograd.grad(loss, weights))


def noised(recipe: dict[str, Any], prepared: Any, batch: list[Sample]) -> list[torch.Tensor]:
    """Return the gradients of step 0 with these rows."""
    base, attached, samples = prepared
    weights = methods.name_trainable(attached.model)
    decoder = loop.begin_decoder(base, recipe)

    def row_loss(sample: Sample) -> torch.Tensor:
        return loop.part_losses(base, decoder, [sample], recipe)[0].sum() / sample.weight

    plan = privacy.PrivatePlan(samples, recipe, SECRET)
    privacy.set_private_gradients(weights, batch, row_loss, plan, recipe, SECRET, 0)
    return [weight.grad.double() for weight in weights.values() if weight.grad is not None]


@pytest.mark.parametrize("method", ["qlora", "lora", "rslora", "lora-plus"])
def test_the_gradient_is_the_sum_of_each_row_s_own_clipped_by_itself(prepare: Prepare, method: str) -> None:
    quantisation = "none" if method == "lora" else "nf4-double"
    recipe = PRIVATE | {"method": method, "quantisation": quantisation, "privacy": QUIET}
    prepared = base, attached, samples = prepare(recipe)
    weights = list(methods.name_trainable(attached.model).values())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in weights:
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    expected, norms = [torch.zeros(weight.shape, dtype=torch.float64) for weight in weights], []
    for sample in samples[:5]:
        own = [one.double() for one in row_gradient(base, weights, sample)]
        norms.append(math.sqrt(sum(one.square().sum().item() for one in own)))
        for total, one in zip(expected, own, strict=True):
            total += one * min(1.0, 0.5 / norms[-1]) / 4
    assert max(norms) > 0.5, "some row is clipped"
    got = noised(recipe, prepared, samples[:5])
    largest = max(one.abs().max().item() for one in expected)
    for one, wanted in zip(got, expected, strict=True):
        assert torch.allclose(one, wanted, atol=2e-3 * largest)


def test_a_row_more_moves_the_sum_by_no_more_than_the_clipping_norm(prepare: Prepare) -> None:
    recipe = PRIVATE | {"privacy": QUIET}
    prepared = prepare(recipe)
    samples = prepared[2]
    without, with_it = noised(recipe, prepared, samples[:4]), noised(recipe, prepared, samples[:5])
    moved = math.sqrt(sum((4 * (b - a)).square().sum().item() for a, b in zip(without, with_it, strict=True)))
    assert 0 < moved <= 0.5 * (1 + 1e-5)


def test_a_base_that_draws_at_random_for_a_row_is_refused(prepare: Prepare) -> None:
    """What was drawn for the rows before would change a row's gradient: the guarantee would not hold."""
    base, attached, samples = prepare(PRIVATE)
    base.model.get_decoder().layers[0].mlp.register_forward_hook(
        lambda module, given, made: torch.nn.functional.dropout(made, 0.1)
    )
    weights = methods.name_trainable(attached.model)
    plan = privacy.PrivatePlan(samples, PRIVATE, SECRET)

    def row_loss(sample: Sample) -> torch.Tensor:
        return base.model(input_ids=torch.tensor([list(sample.ids)])).logits.float().logsumexp(-1).mean()  # type: ignore[no-any-return]

    with pytest.raises(BadInput, match="expected a base that draws nothing at random for a row"):
        privacy.set_private_gradients(weights, samples[:2], row_loss, plan, PRIVATE, SECRET, 0)


def test_a_row_whose_gradient_is_no_number_adds_nothing() -> None:
    sums = [torch.zeros(2, dtype=torch.float64)]
    for broken in (math.nan, math.inf):
        privacy.add_clipped(sums, [torch.tensor([broken, 1.0])], 1.0)
    privacy.add_clipped(sums, [None], 1.0)
    privacy.add_clipped(sums, [torch.zeros(2)], 1.0)
    assert sums[0].tolist() == [0.0, 0.0]
    privacy.add_clipped(sums, [torch.tensor([3.0, 4.0])], 1.0)
    assert sums[0].tolist() == pytest.approx([0.6, 0.8])


def test_noise_is_normal_of_its_scale_on_a_grid_and_follows_from_secret_and_step() -> None:
    sums = [torch.zeros(300, 200, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)]
    privacy.add_noise(sums, 3.0, SECRET, 0)
    noise = sums[0].flatten()
    assert noise.mean().item() == pytest.approx(0, abs=0.06)
    assert noise.std().item() == pytest.approx(3.0, rel=0.01)
    inside = (noise.abs() < 3.0).double().mean().item()
    assert inside == pytest.approx(0.6827, abs=0.01)
    assert torch.equal(noise * 2**19, (noise * 2**19).round()), "multiples of 2 * 2^-20"
    again = [torch.zeros(300, 200, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)]
    privacy.add_noise(again, 3.0, SECRET, 0)
    assert torch.equal(again[0], sums[0]) and torch.equal(again[1], sums[1])
    for secret, step in ((SECRET, 1), (OTHER, 0)):
        other = [torch.zeros(300, 200, dtype=torch.float64)]
        privacy.add_noise(other, 3.0, secret, step)
        both = torch.stack([noise, other[0].flatten()])
        assert abs(torch.corrcoef(both)[0, 1].item()) < 0.02


def test_normal_numbers_are_those_of_the_specification() -> None:
    """docs/formats/private-training.md, by plain arithmetic."""
    drawn, numbers = Keystream(SECRET, "x"), Keystream(SECRET, "x").take(32)
    first, second = (int.from_bytes(numbers[at : at + 8], "little") for at in (0, 8))
    radius = math.sqrt(-2 * math.log((first + 1) / 2**64))
    expected = [radius * math.cos(2 * math.pi * second / 2**64), radius * math.sin(2 * math.pi * second / 2**64)]
    assert privacy.draw_normal(drawn, 3)[:2].tolist() == pytest.approx(expected, rel=1e-12)


def indices(plan: privacy.PrivatePlan) -> list[list[int]]:
    return [[sample.index for sample in plan.draw(number)] for number in range(len(plan))]


def test_every_row_is_drawn_with_one_probability_by_itself(prepare: Prepare) -> None:
    _, _, samples = prepare(PRIVATE)
    recipe = PRIVATE | {"epochs": 500, "batch_size": 3}
    plan = privacy.PrivatePlan(samples, recipe, SECRET)
    assert len(plan) == 2000
    steps = indices(plan)
    counts = [len(step) for step in steps]
    assert sum(counts) / 2000 == pytest.approx(3, abs=0.15)
    # Binomial of 12 and 1/4, not three each.
    assert sum((count - 3) ** 2 for count in counts) / 2000 == pytest.approx(2.25, abs=0.3)
    assert 0 in counts and max(counts) > 6
    for index in (sample.index for sample in samples):
        assert sum(index in step for step in steps) / 2000 == pytest.approx(0.25, abs=0.05)
    assert steps == indices(privacy.PrivatePlan(samples, recipe, SECRET))
    assert steps != indices(privacy.PrivatePlan(samples, recipe, OTHER))
    whole = privacy.PrivatePlan(samples, recipe | {"batch_size": 64}, SECRET)
    assert [len(step) for step in indices(whole)] == [12] * 500


def train(prepared: Any, recipe: dict[str, Any], secret: bytes = SECRET, **options: Any) -> tuple[Any, ...]:
    base, attached, samples = prepared
    steps: list[loop.StepMeasurement] = []
    training = loop.train(base, attached, samples, recipe, steps.append, secret=secret, **options)
    return steps, training, methods.encode_adapter(attached, "tiny")


@pytest.mark.thorough
def test_a_resumed_private_run_has_the_bytes_of_one_that_was_not_interrupted(prepare: Prepare) -> None:
    kept: list[bytes] = []

    def keep(training: TrainingState) -> None:
        kept.append(encode_checkpoint(training))

    steps, training, adapter = train(prepare(PRIVATE), PRIVATE, save_checkpoint=keep)
    again, end, resumed = train(prepare(PRIVATE | {"seed": PRIVATE["seed"]}), PRIVATE, start=kept[0])
    assert 0 < len(again) < len(steps) and resumed == adapter
    assert encode_checkpoint(end) == encode_checkpoint(training)
    for state in kept:
        for told in (SECRET, SECRET.hex().encode(), hashlib.sha256(SECRET).digest()):
            assert told not in state
    assert train(prepare(PRIVATE), PRIVATE, secret=OTHER)[2] != adapter


def test_steps_say_nothing_of_the_rows_they_drew(prepare: Prepare) -> None:
    prepared = prepare(PRIVATE)
    steps, training, _ = train(prepared, PRIVATE)
    tokens = sum(sample.tokens for sample in prepared[2])
    assert {(step.loss, step.row_losses, step.validation_loss) for step in steps} == {(None, (), None)}
    assert [step.tokens for step in steps] == [4 * (number + 1) * tokens // 12 for number in range(len(steps))]
    assert training.losses == [0.0] * len(steps)
    assert all(step.grad_norm > 0 for step in steps)


def test_an_empty_step_is_a_step_of_noise(prepare: Prepare) -> None:
    recipe = PRIVATE | {"batch_size": 1, "epochs": 1, "save_steps": 20}
    prepared = prepare(recipe)
    assert [] in indices(privacy.PrivatePlan(prepared[2], recipe, SECRET))
    steps, _, _ = train(prepared, recipe)
    assert len(steps) == 12 and all(math.isfinite(step.grad_norm) for step in steps)


def test_weights_that_are_no_numbers_end_the_run_and_name_no_row(prepare: Prepare) -> None:
    prepared = prepare(PRIVATE)
    weights = methods.name_trainable(prepared[1].model)
    with torch.no_grad():
        next(iter(weights.values()))[0, 0] = math.inf
    with pytest.raises(BadInput, match="step 1: expected finite weights, got others") as found:
        train(prepared, PRIVATE)
    assert found.value.code == "diverged" and "row" not in found.value.message


def test_a_secret_comes_with_a_private_recipe_and_with_no_other(prepare: Prepare) -> None:
    assert privacy.take_secret(PRIVATE, {"secret": SECRET.hex()}) == SECRET
    assert privacy.take_secret(RECIPE, {}) == b""
    for recipe, task in ((PRIVATE, {}), (RECIPE, {"secret": SECRET.hex()})):
        with pytest.raises(BadInput, match="task, secret: expected"):
            privacy.take_secret(recipe, task)
    sample = replace(prepare(PRIVATE)[2][0])
    with pytest.raises(BadInput, match="secret: expected 32 bytes, got 3"):
        privacy.PrivatePlan([sample] * 9, PRIVATE, b"abc").draw(0)
