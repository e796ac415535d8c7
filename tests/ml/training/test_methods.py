"""Every method is trained, saved, loaded again and asked: what is evaluated is what was trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from appliance.domain.recipe.methods import METHODS
from appliance.errors import BadInput, Unavailable
from appliance.ml.data import rows as data
from appliance.ml.data.rows import tokenize_rows
from appliance.ml.evaluation import evaluation
from appliance.ml.inference.adapters import AdapterSlots
from appliance.ml.model import machine
from appliance.ml.model.base import LoadedBase, load_base
from appliance.ml.training import loop, methods
from appliance.ml.training import methods as starts
from scripts.kit.tiny_model import RECIPE
from tests.kit.gptq import packed_twin

PAIRS = [(name, quantisation) for name, method in METHODS.items() for quantisation in method.quantisations]
RATES = {"ia3": "0.1", "full": "0.003", "lora-plus": "0.002"}
OFF: dict[str, Any] = {"rank": 0, "alpha": 0, "dropout": "0.0"}


def recipe_of(method: str, quantisation: str, **changes: Any) -> dict[str, Any]:
    recipe = RECIPE | {
        "method": method,
        "quantisation": quantisation,
        "dropout": "0.0",
        "gradient_accumulation_steps": 1,
        "epochs": 3,
    }
    recipe |= {
        "learning_rate": RATES.get(method, "0.01"),
        "loraplus_lr_ratio": "16.0" if method == "lora-plus" else "1.0",
    }
    recipe |= {} if METHODS[method].low_rank else OFF
    return recipe | ({} if METHODS[method].chooses_modules else {"target_modules": []}) | changes


@dataclass
class Trained:
    recipe: dict[str, Any]
    model: Any
    base: LoadedBase
    losses: list[float]
    weights: bytes
    config: bytes


Train = Callable[..., Trained]


@pytest.fixture(scope="module")
def train(base_folder: Path, dataset: Path) -> Train:
    """Return a function that trains as the worker does, once for each recipe."""
    made: dict[str, Trained] = {}

    def run(method: str, quantisation: str, **changes: Any) -> Trained:
        recipe = recipe_of(method, quantisation, **changes)
        key = json.dumps(recipe, sort_keys=True)
        if key not in made:
            machine.use_determinism(recipe["seed"])
            base = load(base_folder, recipe, trains_weights=method == "full")
            rows = tokenize_rows(data.load_rows(dataset, data.TRAIN), base.chat, max_length=128)
            attached = methods.attach_adapter(base, recipe)
            ended = loop.train(base, attached, rows, recipe, lambda step: None)
            weights, config = methods.encode_adapter(attached, "tiny")
            made[key] = Trained(recipe, attached.model.eval(), base, ended.losses, weights, config)
        return made[key]

    return run


def load(folder: Path, recipe: dict[str, Any], *, trains_weights: bool = False) -> LoadedBase:
    if recipe["quantisation"] == "gptq":
        folder = packed_twin(folder)
    tuple_ = {key: recipe[key] for key in ("quantisation", "compute_dtype", "device")}
    return load_base(folder, **tuple_, trains_weights=trains_weights, may_repack=METHODS[recipe["method"]].plain)


def read_logits(base: LoadedBase) -> torch.Tensor:
    """At every token of a fixed text."""
    with torch.inference_mode():
        hidden = base.hidden(input_ids=torch.arange(3, 43)[None], use_cache=False)[0]
        return (hidden.to(base.head().weight.dtype) @ base.head().weight.T).float()


def reload(trained: Trained, folder: Path, read: Callable[[LoadedBase], Any] = read_logits) -> tuple[Any, Any]:
    """Return the logits, or what `read` returns, of the imported base and with the saved files."""
    base = load(folder, trained.recipe)
    plain = read(base)
    slots = AdapterSlots(base)
    if METHODS[trained.recipe["method"]].plain:
        slots.load("a", trained.config, trained.weights)
        with slots.using("a"):
            return plain, read(base)
    slots.remove()
    methods.apply_trained(base, trained.config, trained.weights)
    return plain, read(base)


@pytest.mark.thorough
@pytest.mark.family(keep=6)
@pytest.mark.parametrize(("method", "quantisation"), PAIRS)
def test_what_was_trained_is_what_answers_after_it_was_saved(
    train: Train, base_folder: Path, method: str, quantisation: str
) -> None:
    trained = train(method, quantisation)
    assert sum(trained.losses[-3:]) < 0.8 * sum(trained.losses[:3])
    plain, loaded = reload(trained, base_folder)
    expected = read_logits(trained.base)
    moved = (plain - expected).abs().max().item()
    assert moved > 0.1
    assert torch.equal(loaded, expected), "no tolerance: OLoRA and PiSSA are plain LoRA over the imported base too"


@pytest.mark.thorough
@pytest.mark.family(keep=6)
@pytest.mark.parametrize(("method", "quantisation"), PAIRS)
def test_what_was_saved_is_evaluated_and_better_than_the_base(
    train: Train, base_folder: Path, dataset: Path, method: str, quantisation: str
) -> None:
    """On the rows that were held out, by what the evaluating worker calls."""
    trained = train(method, quantisation)
    rows, about = data.load_rows(dataset, data.HELD_OUT), data.load_about(dataset)

    def evaluate(base: LoadedBase) -> dict[str, Any]:
        samples = tokenize_rows(rows, base.chat, max_length=128)
        return evaluation.evaluate(base, None, about, rows, samples, lambda more, tokens: None).metrics

    before, after = reload(trained, base_folder, evaluate)
    assert before["rows"] == after["rows"] == len(rows)
    assert float(after["loss"]) < 0.8 * float(before["loss"])
    assert float(after["accuracy"]) >= float(before["accuracy"])


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("method", "quantisation"),
    [("dora", "nf4-double"), ("ia3", "nf4-double"), ("qlora", "nf4-double"), ("lora", "gptq")],
)
def test_in_bfloat16_too(train: Train, base_folder: Path, method: str, quantisation: str) -> None:
    """bitsandbytes repacks a layer that answers, and DoRA, which dequantises it again, would be evaluated on noise."""
    trained = train(method, quantisation, compute_dtype="bfloat16")
    plain, loaded = reload(trained, base_folder)
    assert torch.equal(loaded, read_logits(trained.base))
    assert (plain - loaded).abs().max().item() > 0.1
    trained.model.train()
    training = read_logits(trained.base)
    trained.model.eval()
    assert (training - loaded).norm() < 0.05 * loaded.norm(), "there is no dropout: it answers as it was trained"


@pytest.mark.parametrize("method", starts.STARTS)
@pytest.mark.parametrize("quantisation", ["nf4-double", "none", "gptq"])
def test_a_start_in_the_base_changes_nothing_at_first_and_writes_nothing(
    base_folder: Path, method: str, quantisation: str
) -> None:
    recipe = recipe_of(method, quantisation)
    machine.use_determinism(7)
    base = load(base_folder, recipe)
    plain = read_logits(base)
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    attached = methods.attach_adapter(base, recipe)
    attached.model.eval()
    assert (read_logits(base) - plain).abs().max().item() < 1e-4 * plain.abs().max().item()
    after = {name.replace(".base_layer", ""): t for name, t in attached.model.get_base_model().state_dict().items()}
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    assert not methods.is_changed(attached)


@pytest.mark.thorough
@pytest.mark.parametrize("method", starts.STARTS)
def test_a_start_is_held_still_and_served_to_the_bit_in_bfloat16(train: Train, base_folder: Path, method: str) -> None:
    for optimiser in ("adamw", "adamw-8bit"):
        trained = train(method, "nf4-double", compute_dtype="bfloat16", optimiser=optimiser, epochs=1)
        began = methods.attach_adapter(load(base_folder, trained.recipe), trained.recipe)
        for layer, start in zip(starts.list_layers(trained.model), starts.list_layers(began.model), strict=True):
            for part, dim in (("lora_A", 0), ("lora_B", 1)):
                ours, theirs = (getattr(one, part)["default"].weight.chunk(2, dim=dim) for one in (layer, start))
                assert torch.equal(ours[1], theirs[1])
                assert not torch.equal(ours[0], theirs[0])
        assert torch.equal(reload(trained, base_folder)[1], read_logits(trained.base))


@pytest.mark.thorough
@pytest.mark.parametrize("method", starts.STARTS)
def test_a_start_fits_a_layer_that_is_narrower_than_its_rank(train: Train, base_folder: Path, method: str) -> None:
    recipe = recipe_of(method, "none", rank=48, alpha=96, target_modules=["q_proj", "k_proj"], epochs=1)
    base = load(base_folder, recipe)
    plain = read_logits(base)
    attached = methods.attach_adapter(base, recipe)
    attached.model.eval()
    sides = {min(layer.get_base_layer().weight.shape) for layer in starts.list_layers(attached.model)}
    assert sides == {32, 64}, "narrower than the rank, and wider"
    assert (read_logits(base) - plain).abs().max().item() < 1e-4 * plain.abs().max().item()
    trained = train(method, "none", rank=48, alpha=96, target_modules=["q_proj", "k_proj"], epochs=1)
    assert torch.equal(reload(trained, base_folder)[1], read_logits(trained.base))
    for layer in starts.list_layers(trained.model):
        (a, _), (b, _) = (weight.chunk(2, dim=dim) for dim, weight in enumerate(starts._take_pair(layer)))
        side = min(layer.get_base_layer().weight.shape)
        assert not a[side:].any() and not b[:, side:].any() and a[:side].any(dim=1).all()


def _untouched(model: Any, recipe: Mapping[str, Any]) -> Any:
    """As the library wraps it."""
    return methods._wrap(model, methods._configure(model, recipe))


@pytest.mark.parametrize("method", ["full", "olora", "qlora"])
def test_nothing_hangs_on_the_model_that_its_library_did_not_put_there(base_folder: Path, method: str) -> None:
    base = load(base_folder, recipe_of(method, "none"), trains_weights=method == "full")
    before = set(vars(base.model))
    slots = AdapterSlots(base)
    assert set(vars(base.model)) == before
    slots.remove()
    attached = methods.attach_adapter(base, recipe_of(method, "none"))
    if method != "full":
        recipe = recipe_of(method, "none")
        untouched = _untouched(load(base_folder, recipe).model, recipe)
        assert set(vars(attached.model)) == set(vars(untouched))
        before = set(vars(untouched.get_base_model()))
    assert set(vars(base.model)) == before


def test_pissa_begins_with_the_largest_singular_values(base: LoadedBase) -> None:
    """The weight is noise, whose values are close together: what is left over is what the exact ones leave."""
    weight = starts.read_weight(base.model.get_decoder().layers[0].mlp.up_proj)
    a, b = starts.STARTS["pissa"](weight, 8, 2.0, torch.Generator().manual_seed(1))
    u, values, v = torch.linalg.svd(weight)
    best = (u[:, :8] * values[:8]) @ v[:8]
    assert (weight - 2.0 * b @ a).norm() < 1.01 * (weight - best).norm()


@pytest.mark.thorough
def test_a_method_that_did_not_move_is_no_result(base_folder: Path, dataset: Path) -> None:
    """IA3 begins as ones, PiSSA's B is not zero, full's weights are the base's: each is told from its own beginning."""
    for method, quantisation in (("qlora", "nf4-double"), ("ia3", "none"), ("pissa", "none"), ("full", "none")):
        recipe = recipe_of(method, quantisation, learning_rate="0.0", epochs=1)
        base = load(base_folder, recipe, trains_weights=method == "full")
        rows = tokenize_rows(data.load_rows(dataset, data.TRAIN), base.chat, max_length=128)
        attached = methods.attach_adapter(base, recipe)
        with pytest.raises(Unavailable, match=r"learning_rate 0\.0: expected a changed adapter after \d+ steps"):
            loop.train(base, attached, rows, recipe, lambda step: None)
        with torch.no_grad():
            last = [weight for name, weight in methods.name_trainable(attached.model).items() if "lora_A" not in name][
                -1
            ]
            last.view(-1)[-1] += 0.5
        assert methods.is_changed(attached)


@pytest.mark.thorough
def test_full_trains_in_float32_and_is_kept_in_the_dtype_that_evaluates_it(train: Train, base_folder: Path) -> None:
    trained = train("full", "none", compute_dtype="bfloat16")
    weights = methods.list_trainable(trained.model)
    assert {weight.dtype for weight in weights} == {torch.float32}
    assert len(weights) == len(list(trained.model.parameters())), "every weight of the base, the head's among them"
    tensors = safetensors.torch.load(trained.weights)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert json.loads(trained.config)["architectures"] == ["LlamaForCausalLM"]
    plain, loaded = reload(trained, base_folder)
    assert (loaded - plain).abs().max().item() > 0.1
    for name, weight in trained.model.named_parameters():
        assert torch.equal(tensors[name], weight.detach().to(torch.bfloat16)), f"{name}: rounded once, when it is kept"
    # Autocast rounds elsewhere than a bf16 model does, and how much one logit moves depends on the machine's kernels.
    assert (loaded - read_logits(trained.base)).norm().item() < 0.05 * loaded.norm().item()


def test_every_weight_of_a_base_gets_the_gradient_of_the_plain_loss(base_folder: Path, dataset: Path) -> None:
    """The head too, which is the embedding's own tensor here: a loss that is quick for adapters must not lose it."""
    recipe = recipe_of("full", "none")
    base = load(base_folder, recipe, trains_weights=True)
    model = methods.attach_adapter(base, recipe).model
    sample = tokenize_rows(data.load_rows(dataset, data.TRAIN), base.chat, max_length=128)[0]
    loop.sample_losses(base, loop.begin_decoder(base, recipe), [sample]).sum().backward()
    ours = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    ids = torch.tensor([sample.ids])
    logits = model(input_ids=ids, use_cache=False).logits[0, sample.spans[0][0] - 1 : -1]
    torch.nn.functional.cross_entropy(logits, ids[0, sample.spans[0][0] :], reduction="sum").backward()
    for name, weight in model.named_parameters():
        assert torch.allclose(ours[name], weight.grad, rtol=1e-3, atol=1e-4), name


def test_lora_plus_moves_b_faster_by_its_ratio(base: LoadedBase) -> None:
    recipe = recipe_of("lora-plus", "nf4-double", loraplus_lr_ratio="8.0")
    model = methods.attach_adapter(base, recipe).model
    training = loop.begin_training(model, recipe, 4, "cpu")
    names = {id(weight): name for name, weight in training.weights.items()}
    ratios = {group["ratio"]: [names[id(w)] for w in group["params"]] for group in training.optimizer.param_groups}
    assert all("lora_A" in name for name in ratios[1.0])
    assert all("lora_B" in name for name in ratios[8.0])
    assert len(ratios[1.0]) == len(ratios[8.0]) == 14


def test_rank_stabilised_lora_says_so(train: Train) -> None:
    assert json.loads(train("rslora", "none").config)["use_rslora"] is True


@pytest.mark.thorough
@pytest.mark.parametrize("method", ["dora", "ia3"])
def test_no_slot_takes_what_is_no_plain_lora(train: Train, base_folder: Path, method: str) -> None:
    trained = train(method, "nf4-double")
    slots = AdapterSlots(load(base_folder, trained.recipe))
    with pytest.raises(BadInput) as refused:
        slots.load("a", trained.config, trained.weights)
    assert refused.value.code == "not-servable"


@pytest.mark.thorough
def test_weights_of_another_base_are_refused(train: Train, base: LoadedBase) -> None:
    trained = train("full", "none")
    with pytest.raises(BadInput, match="expected this base's names, shapes and dtypes"):
        methods.apply_trained(base, trained.config, trained.weights)
    with pytest.raises(BadInput, match="trained weights: expected safetensors and JSON"):
        methods.apply_trained(base, trained.config, trained.weights[:-1])
