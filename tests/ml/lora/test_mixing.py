"""A response does not depend on the other rows of its batch: its logits have the same bits alone and in any batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from appliance.ml.inference import adapters, cache
from appliance.ml.inference.adapters import AdapterSlots
from appliance.ml.inference.lora import Stacks
from appliance.ml.model import machine
from appliance.ml.model.base import LoadedBase, load_base
from appliance.ml.serving import engine
from tests.kit.mixes import (
    MODULES,
    REQUESTED,
    answer_mixed,
    ask,
    check_alone,
    load_adapters,
    plain_adapter,
    same_bits,
)

TUPLES = [
    *(("nf4-double", "bfloat16"), ("nf4-double", "float32"), ("none", "bfloat16")),
    *(("gptq", "bfloat16"), ("gptq", "float32"), ("none", "float32")),
]


@pytest.fixture(params=["rows", "stacks"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How batches are laid out: as on the CPU, or, on the CPU as well, as on a GPU."""
    if request.param == "stacks":
        monkeypatch.setattr(adapters, "RowLayout", lambda groups, dtype: Stacks(groups, "cpu"))
    return str(request.param)


@pytest.mark.essential
@pytest.mark.family(keep=4)
@pytest.mark.parametrize(("quantisation", "dtype"), TUPLES)
def test_logits_are_the_same_bits_alone_and_in_a_full_mixed_batch(
    base_folder: Path, gptq_folder: Path, quantisation: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU; ml/inference/test_fixed_shapes.py has the batches of a GPU."""
    machine.use_determinism(0)
    monkeypatch.setattr(engine, "PROMPT_CHUNK", 40)
    monkeypatch.setattr(cache, "BLOCK", 16)
    folder = gptq_folder if quantisation == "gptq" else base_folder
    base = load_base(folder, quantisation=quantisation, compute_dtype=dtype, device="cpu", own_layers=True)
    check_alone(base, answer_mixed(base))


@pytest.mark.thorough
@pytest.mark.family(keep=3)
@pytest.mark.parametrize(("quantisation", "dtype"), TUPLES[:3])
def test_many_requests_on_one_adapter_are_the_same_bits_as_one(
    base_folder: Path, quantisation: str, dtype: str, layout: str
) -> None:
    machine.use_determinism(0)
    base = load_base(base_folder, quantisation=quantisation, compute_dtype=dtype, device="cpu", own_layers=True)
    watched = load_adapters(base)
    query = {f"{number}": ask(f"pay in clause {number}", max_tokens=12) for number in range(7)}
    for name, request in query.items():
        watched.start(name, "a", request)
    watched.start("base", None, ask("hidden", max_tokens=12))
    while watched.busy:
        watched.step()
    assert watched.widest == 8
    together, watched.seen = watched.seen, {}
    for name in ("0", "3", "6"):
        watched.start(name, "a", query[name])
        while watched.busy:
            watched.step()
        assert all(map(same_bits, together[name], watched.seen[name])), name


@pytest.mark.thorough
def test_a_row_of_a_mixed_batch_is_what_its_adapter_alone_computes(base: LoadedBase, layout: str) -> None:
    """Near the pass with one adapter in use, and far from the base and from the other adapters."""
    watched = load_adapters(base)
    for name in ("1", "3", "5", "8"):
        watched.start(name, REQUESTED[name][0], REQUESTED[name][1])
    while watched.busy:
        watched.step()
    for name in ("1", "3", "5", "8"):
        slot, request = REQUESTED[name]
        ids = base.chat.encode(base.chat.render(request.messages))
        for count, logits in enumerate(watched.seen[name][:5]):
            with watched.slots.using(slot), torch.inference_mode():
                hidden = base.hidden(input_ids=torch.tensor([ids]), use_cache=False)[0, -1]
                expected = (hidden @ base.head().weight.T).float()
            assert (logits - expected).abs().max() < 2e-3 * expected.abs().max(), (name, count)
            if request.temperature:
                break
            ids.append(int(logits.argmax()))


def test_a_rank_that_is_filled_up_changes_nothing(base: LoadedBase, layout: str) -> None:
    """What a mix adds to three layers that share an input is what each computes by itself; the base's row is left."""
    slots = AdapterSlots(base)
    slots.load("a", *plain_adapter(base, 1, 6, MODULES))
    attention = base.model.get_decoder().layers[0].self_attn
    layers = [attention.q_proj, attention.k_proj, attention.v_proj]
    x = torch.randn(3, 64)
    assert slots.stepper is not None
    with torch.inference_mode():
        plain = [layer(x[None])[0] for layer in layers]
        with slots.using("a"):
            expected = [layer(x[None])[0] for layer in layers]
        with slots.mixing(["a", None, "a"]):
            assert slots.mix is not None
            order = {"rows": [0, 1, 2], "stacks": [0, 2, 1]}[layout]
            assert slots.mix.rows[:3] == tuple(order)
            assert set(slots.mix.rows[3:]) <= {None}
            made = torch.cat(plain, dim=1)[order]
            slots.mix.add(slots.stepper.groups[0], x[order], made)
            got = torch.split(made[order], [len(wanted[0]) for wanted in expected], dim=1)
    for one, wanted, bare in zip(got, expected, plain, strict=True):
        torch.testing.assert_close(one, torch.stack([wanted[0], bare[1], wanted[2]]))
        assert (wanted - bare).abs().max() > 0.01


@pytest.mark.thorough
def test_what_fails_in_one_row_ends_that_row_alone(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both in the batch itself and in what is made of a row's own token; the others' bits are those of before."""
    undisturbed = answer_mixed(base)
    undisturbed.slots.remove()
    told: dict[str, Any] = {}
    read = cache.DecodeAttention.read

    def spoilt(self: Any, number: int, *rest: Any) -> Any:
        if number == 1 and any(held is row.held for row in watched._rows if row.name == "7" for held in self.rows):
            raise RuntimeError("an injected failure in the middle of the batch")
        return read(self, number, *rest)

    monkeypatch.setattr(cache.DecodeAttention, "read", spoilt)
    watched = load_adapters(base)
    for name in ("1", "2", "3", "4", "5", "7", "8"):
        watched.start(name, *REQUESTED[name])
    while watched.busy:
        for row in watched._rows:
            if row.name == "2" and row.completion_tokens == 5:
                row.text.push = _broken  # type: ignore[method-assign]
        for event in watched.step():
            if not isinstance(event.content, str):
                told[event.name] = event.content
    assert {name for name, end in told.items() if isinstance(end, Exception)} == {"2", "7"}
    assert "injected" not in told["7"].message
    for name in ("1", "3", "4", "5", "8"):
        assert all(map(same_bits, watched.seen[name], undisturbed.seen[name])), name
    assert watched._cache.used == 0
    for pair in watched._cache._layers.values():
        assert not pair[0].any()
        assert not pair[1].any()


def _broken(token: int) -> str:
    raise KeyError(token)


@pytest.mark.thorough
def test_emptying_a_slot_cuts_its_answers_off_and_no_other(base: LoadedBase) -> None:
    watched = load_adapters(base)
    for name in ("1", "2", "4"):
        watched.start(name, *REQUESTED[name])
    for _ in range(3):
        watched.step()
    cut = watched.unload("a")
    assert sorted((event.name, event.content.code) for event in cut) == [("1", "cut-off"), ("4", "cut-off")]  # type: ignore[union-attr]
    assert "a" not in watched.slots
    before = len(watched.seen["1"])
    while watched.busy:
        watched.step()
    assert len(watched.seen["1"]) == before, "nothing is drawn for it any more"
    assert len(watched.seen["2"]) == 40
