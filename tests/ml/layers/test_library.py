"""Bases that only the library knows: a loss and its gradient, an evaluation, labels, and drawing, against itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from appliance.errors import BadInput, Unavailable
from appliance.ml.data.rows import Sample
from appliance.ml.evaluation.evaluation import measure_losses
from appliance.ml.evaluation.labels import LabelTree, evaluate_rows
from appliance.ml.inference import sampling, score
from appliance.ml.inference.adapters import AdapterSlots, fits_slot
from appliance.ml.inference.cache import Cache, RequestCache, list_tensors
from appliance.ml.inference.reading import encode_fingerprint, read_fingerprint
from appliance.ml.inference.request import InferenceRequest
from appliance.ml.inference.score import find_branches, score_in_passes
from appliance.ml.model import machine
from appliance.ml.model.base import LoadedBase, load_base
from appliance.ml.model.convert import LIBRARY_WARNING, convert_base
from appliance.ml.serving.engine import Done, ServingEngine
from appliance.ml.training import loop, methods
from scripts.kit.tiny_model import LIBRARY_KINDS, RECIPE, build_base
from tests.kit.scoring import score_labels

COMMON = [7, 50, 60, 70, 80, 90, 100, 110, 33]
# Below and beyond the window (8); the third shares nothing.
SEQUENCES = [[*COMMON, 5, 6, 7], COMMON + list(range(20, 31)), [12, *COMMON[1:]]]
LONG = [3 * number % 300 + 3 for number in range(40)]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LABELS = [[10, 11, 2], [10, 12, 2], [10, 12, 13, 2], [20, 2]]
LOADED = {"quantisation": "none", "compute_dtype": "float32", "device": "cpu"}
PLAIN = {**RECIPE, "method": "lora", "dropout": "0.0", "target_modules": ATTENTION}


@pytest.fixture(scope="module", params=LIBRARY_KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    machine.use_determinism(3)
    return build_base(tmp_path_factory.mktemp("library") / "base", request.param)


@pytest.fixture
def base(folder: Path) -> LoadedBase:
    machine.use_determinism(3)
    return load_base(folder, **LOADED, own_layers=True)  # type: ignore[arg-type]


def _expected(model: Any, ids: list[int]) -> torch.Tensor:
    """[tokens, words], by the library, alone and without a cache."""
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([ids]), use_cache=False).logits[0]
    return logits


def _differ(some: torch.Tensor, other: torch.Tensor) -> float:
    return float((some - other).abs().max() / other.abs().max())


def _samples() -> list[Sample]:
    return [Sample(place, tuple(ids), ((len(ids) - 3, len(ids)),)) for place, ids in enumerate([*SEQUENCES, LONG])]


def _adapt(folder: Path, **changes: Any) -> tuple[methods.TrainableModel, LoadedBase]:
    """Attach a random adapter to a fresh base, so that it changes every logit."""
    machine.use_determinism(3)
    base = load_base(folder, **LOADED)  # type: ignore[arg-type]
    attached = methods.attach_adapter(base, {**PLAIN, **changes})
    with torch.no_grad():
        for parameter in methods.list_trainable(attached.model):
            parameter.normal_(std=0.1)
    return attached, base


EXPERTS = {"target_modules": [*ATTENTION, "gate_proj", "up_proj", "down_proj"]}


@pytest.mark.thorough
@pytest.mark.parametrize("changes", [{}, EXPERTS], ids=["attention", "experts"])
def test_a_training_step_s_losses_and_gradient_are_the_library_s(folder: Path, changes: dict[str, Any]) -> None:
    attached, base = _adapt(folder, **changes)
    trained = methods.list_trainable(attached.model)
    assert base.uses_library_modules and loop.begin_decoder(base, {**PLAIN, **changes}) is None
    losses = loop.sample_losses(base, None, _samples())
    got = torch.autograd.grad(losses.sum(), trained)
    total = torch.zeros(())
    for sample, ours in zip(_samples(), losses, strict=True):
        logits = attached.model(torch.tensor([sample.ids]), use_cache=False).logits[0, -4:-1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(sample.ids[-3:]), reduction="sum")
        assert ours.item() == pytest.approx(loss.item(), rel=1e-5)
        total = total + loss
    for ours, theirs in zip(got, torch.autograd.grad(total, trained), strict=True):
        assert bool(theirs.any()) and _differ(ours, theirs) < 1e-3


@pytest.mark.parametrize("quantisation", ["none", "nf4-double", "int8"])
def test_an_evaluation_s_loss_is_the_library_s(folder: Path, quantisation: str) -> None:
    base = load_base(folder, **{**LOADED, "quantisation": quantisation}, own_layers=True)  # type: ignore[arg-type]
    expected = 0.0
    for sample in _samples():
        logits = _expected(base.model, list(sample.ids))[-4:-1]
        expected += torch.nn.functional.cross_entropy(logits, torch.tensor(sample.ids[-3:]), reduction="sum").item()
    losses = measure_losses(base, _samples(), lambda rows, tokens: None)
    assert sum(losses) == pytest.approx(expected, rel=1e-5)


@pytest.mark.thorough
@torch.inference_mode()
@pytest.mark.parametrize("firsts", [(3, 20), (1, 7)])
def test_decoding_token_by_token_is_the_whole_sequence(base: LoadedBase, firsts: tuple[int, int]) -> None:
    slots, cache, rows = AdapterSlots(base), Cache("cpu", 512), [RequestCache(), RequestCache()]
    for held, first in zip(rows, firsts, strict=True):
        size = first if base.reads_whole else 7
        for start in range(0, first, size):
            sampling.read_prompt(base, slots, cache, held, LONG[start : min(start + size, first)])
    for step in range(12):
        with slots.mixing([None, None]):
            got = sampling.read_drawn(base, slots, cache, rows, [LONG[first + step] for first in firsts])
        for row, first in zip(got, firsts, strict=True):
            assert _differ(row, _expected(base.model, LONG[: first + step + 1])[-1]) < 5e-5
    tensors = list_tensors(rows[0].own)
    assert any(bool(tensor.any()) for tensor in tensors)
    cache.release(rows[0])
    assert rows[0].own is None and not any(bool(tensor.any()) for tensor in tensors), "what was held is zeroed"


@pytest.mark.thorough
def test_labels_are_scored_as_by_whole_sequences(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an evaluation, in one pass of the engine and in several."""

    def walk(label: list[int]) -> float:
        total = 0.0
        for place, token in enumerate(label):
            allowed = sorted({other[place] for other in LABELS if other[:place] == label[:place]})
            logits = _expected(base.model, COMMON + label[:place])[-1, allowed].double()
            total += torch.log_softmax(logits, dim=-1)[allowed.index(token)].item()
        return total

    expected = [walk(label) for label in LABELS]
    assert score_labels(base, COMMON, LABELS) == pytest.approx(expected, abs=1e-4)
    rows = [
        Sample(place, (*COMMON, *label), ((len(COMMON), len(COMMON) + len(label)),))
        for place, label in enumerate(LABELS)
    ]
    evaluated = evaluate_rows(
        base, rows, [len(COMMON)] * len(rows), [LabelTree(LABELS)] * len(rows), lambda rows, tokens: None
    )
    best = max(range(len(LABELS)), key=expected.__getitem__)
    for row, one in zip(rows, evaluated, strict=True):
        logits = _expected(base.model, list(row.ids))[len(COMMON) - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(row.ids[len(COMMON) :]), reduction="sum").item()
        assert (one.loss, one.label) == (pytest.approx(loss, rel=1e-4), best)
        assert one.log_probability == pytest.approx(expected[best], abs=1e-4)
    branches = find_branches(LABELS)
    (passed,) = score_in_passes(base, Cache("cpu", 512), RequestCache(), COMMON, branches, len(LABELS))
    assert passed == pytest.approx(expected, abs=1e-4)
    monkeypatch.setattr(score, "PASS_TOKENS", 0)
    *_, passes = score_in_passes(base, Cache("cpu", 512), RequestCache(), COMMON, branches, len(LABELS))
    assert passes == pytest.approx(expected, abs=1e-4)


@pytest.mark.thorough
def test_adapters_are_served_side_by_side_with_the_bits_of_each_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the adapted logits are peft's."""
    seen: dict[str, list[torch.Tensor]] = {}
    plain = ServingEngine._draw
    monkeypatch.setattr(
        ServingEngine,
        "_draw",
        lambda self, row, found: seen.setdefault(row.name, []).append(found.logits.clone()) or plain(self, row, found),
    )
    sealed = {}
    for slot, scale in (("a", 16), ("b", 160)):
        attached, theirs = _adapt(folder, alpha=scale)
        weights, config = methods.encode_adapter(attached, "tiny")
        attached.model.eval()
        sealed[slot] = config, weights, read_fingerprint(theirs)
    request = InferenceRequest(({"role": "user", "content": "pay and due"},), max_tokens=8, temperature=1.0, seed=4)
    runs: list[dict[str, list[torch.Tensor]]] = []
    for names in ("ab", "a", "b"):
        engine = ServingEngine(load_base(folder, **LOADED, own_layers=True))  # type: ignore[arg-type]
        for slot in names:
            config, weights, adapted = sealed[slot]
            engine.load(slot, config, weights, encode_fingerprint(engine.base, engine._plain, adapted))
            engine.start(slot, slot, request)
        while engine.busy:
            assert all(isinstance(event.content, str | Done) for event in engine.step())
        runs.append(seen)
        seen = {}
    together, alone = runs[0], runs[1] | runs[2]
    for name in "ab":
        assert len(alone[name]) > 1
        assert all(torch.equal(*pair) for pair in zip(alone[name], together[name], strict=True))
    assert not torch.equal(together["a"][0], together["b"][0])


def test_a_row_that_fails_gives_its_neighbours_no_token_twice(
    base: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows before it had taken their token into their caches when the batch was tried again."""
    plain = sampling.read_alone

    def finish(failing: str) -> dict[str, list[object]]:
        engine, told = ServingEngine(base), dict[str, list[object]]()

        def read(base: LoadedBase, held: RequestCache, ids: Any) -> torch.Tensor:
            hidden = plain(base, held, ids)
            if any(row.held is held and row.name == failing and len(row.drawn) == 3 for row in engine._rows):
                raise RuntimeError("half of it is written")
            return hidden

        monkeypatch.setattr(sampling, "read_alone", read)
        for name in "abc":
            words = ({"role": "user", "content": f"pay and due {name}"},)
            engine.start(name, None, InferenceRequest(words, max_tokens=8, temperature=1.0, seed=4))
        while engine.busy:
            for event in engine.step():
                told.setdefault(event.name, []).append(event.content)
        return told

    whole, failed = finish("none"), finish("b")
    assert (failed["a"], failed["c"]) == (whole["a"], whole["c"])
    error = failed["b"][-1]
    assert isinstance(error, Unavailable) and error.code == "answer-failed"
    assert failed["b"][:-1] == whole["b"][: len(failed["b"]) - 1]


def test_an_adapter_on_experts_is_saved_and_applied_but_fits_no_slot(folder: Path) -> None:
    attached, theirs = _adapt(folder, **EXPERTS)
    weights, config = methods.encode_adapter(attached, "tiny")
    attached.model.eval()
    named = json.loads(config)["target_parameters"]
    assert all(name.endswith(("experts.gate_up_proj", "experts.down_proj")) for name in named) and len(named) == 2
    base = load_base(folder, **LOADED)  # type: ignore[arg-type]
    plain = read_fingerprint(base)
    assert not fits_slot(config)
    with pytest.raises(BadInput, match="target_parameters: expected plain LoRA"):
        AdapterSlots(base).load("a", config, weights)
    base = load_base(folder, **LOADED)  # type: ignore[arg-type]
    methods.apply_trained(base, config, weights)
    assert read_fingerprint(base) == read_fingerprint(theirs) != plain


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dropout": "0.05"}, "dropout: expected 0.0 for experts"),
        ({"method": "dora"}, "method: expected one of qlora, lora, rslora, lora-plus for experts, got dora"),
        ({"target_modules": ["q_proj", "gate_proj"]}, "target_modules: expected gate_proj, up_proj together"),
    ],
)
def test_what_peft_has_not_for_experts_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    base = load_base(folder, **LOADED)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=message):
        methods.attach_adapter(base, {**PLAIN, **EXPERTS, **changes})


def test_an_import_says_that_the_library_is_used_and_what_a_plan_needs(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.mkdir()
    facts = convert_base(folder, output)
    assert facts["warnings"] == [LIBRARY_WARNING]
    shape = facts["shape"]
    assert (shape["library"], shape["experts"], shape["chosen"], shape["expert_layers"]) == (True, 4, 2, 2)
    assert set(shape["roles"]) == {*ATTENTION, "gate_proj", "up_proj", "down_proj"}
    assert shape["expert_inner"] == (32 if facts["architecture"] == "Qwen3MoeForCausalLM" else 128)


@pytest.mark.parametrize("kind", LIBRARY_KINDS)
def test_a_base_s_own_dropout_and_jitter_draw_nothing_in_training(kind: str, tmp_path: Path) -> None:
    machine.use_determinism(3)
    folder = build_base(tmp_path / "base", kind)
    path = folder / "config.json"
    own = {"attention_dropout": 0.5, "router_jitter_noise": 0.5, "embd_pdrop": 0.5}
    path.write_text(json.dumps(json.loads(path.read_bytes()) | own))
    base = load_base(folder, **LOADED)  # type: ignore[arg-type]
    attached = methods.attach_adapter(base, PLAIN)
    before = torch.get_rng_state()
    first, again = (base.hidden_alone(LONG) for _ in range(2))
    assert attached.model.training and torch.equal(first, again) and torch.equal(before, torch.get_rng_state())
