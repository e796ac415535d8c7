"""On the real base, in the dtypes that are served: requests join and leave at random, and no bit of an answer changes.

A sample: a few of the requests are asked again alone, each of its logits compared.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from appliance.ml.inference.request import InferenceRequest
from appliance.ml.model import machine
from appliance.ml.model.base import LoadedBase, load_base
from appliance.ml.model.convert import convert_base
from tests.journeys.test_banking77 import fetch_base
from tests.kit.mixes import MODULES, Watched, plain_adapter, same_bits

RANKS = (1, 4, 8, 8, 16, 16, 16, 32, 64)
TEXT = "the customer asks why a payment that was due has not arrived and what it costs to send another"
REQUESTS, REQUESTED_AGAIN = 22, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real") / "base"
    folder.mkdir()
    convert_base(fetch_base(), folder)
    return folder


@pytest.fixture(params=[("nf4-double", "bfloat16"), ("none", "bfloat16")], ids=["nf4", "bf16"])
def base(folder: Path, request: pytest.FixtureRequest) -> Iterator[LoadedBase]:
    machine.use_determinism(0)
    quantisation, dtype = request.param
    yield load_base(folder, quantisation=quantisation, compute_dtype=dtype, device="cpu", own_layers=True)


def _ask(chance: random.Random) -> tuple[str | None, InferenceRequest]:
    """Draw an adapter or the base, a prompt of up to three chunks of attention, and how to sample."""
    slot = chance.choice([None, *(f"{number}" for number in range(len(RANKS)))])
    text = " ".join(chance.choice(TEXT.split()) for _ in range(chance.choice([4, 12, 40, 150])))
    temperature = chance.choice([0.0, 0.0, 0.9])
    drawn = {"temperature": temperature, "top_p": chance.choice([0.8, 1.0]), "seed": chance.randrange(100)}
    return slot, InferenceRequest(({"role": "user", "content": text},), max_tokens=chance.choice([3, 8, 14]), **drawn)


@pytest.mark.family(keep=1)
@pytest.mark.outside
@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_answers_of_nine_adapters_and_the_base_are_the_same_bits_alone(base: LoadedBase) -> None:
    chance = random.Random(7)
    wanted = {f"{number}": _ask(chance) for number in range(REQUESTS)}
    engine = Watched(base)
    for number, rank in enumerate(RANKS):
        modules = MODULES if number % 4 else ["q_proj", "v_proj", "down_proj"]
        engine.slots.load(f"{number}", *plain_adapter(base, number, rank, modules, scale=0.03))
    waiting = list(wanted)
    while waiting or engine.busy:
        for _ in range(chance.choice([0, 1, 3]) if engine.answering < 14 else 0):
            if waiting:
                name = waiting.pop()
                engine.start(name, *wanted[name])
        if chance.random() < 0.03:
            engine.cancel(f"{chance.randrange(REQUESTS)}")
        engine.step()
    assert engine.widest >= 8
    together, engine.seen = engine.seen, {}
    again = chance.sample([name for name in wanted if len(together.get(name, [])) > 2], REQUESTED_AGAIN)
    for name in again:
        engine.start(name, *wanted[name])
        while engine.busy:
            engine.step()
        for number, logits in enumerate(together[name]):
            assert same_bits(logits, engine.seen[name][number]), (name, number, wanted[name])
    adapters = {wanted[name][0] for name in again}
    assert len(adapters) > 3
    assert all(not bool(torch.isnan(logits).any()) for name in again for logits in together[name])
