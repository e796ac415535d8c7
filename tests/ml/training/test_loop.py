"""Training: on the targets alone, normalised by token, repeatable to the byte, with errors for divergence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from appliance.errors import BadInput
from appliance.ml.data import rows as data
from appliance.ml.data.rows import Sample, tokenize_rows
from appliance.ml.layers import packing, scores
from appliance.ml.layers.head import Head
from appliance.ml.model import machine
from appliance.ml.model.base import LoadedBase, load_base
from appliance.ml.training import loop, loss, methods
from scripts.kit.tiny_model import RECIPE, build_base
from tests.kit.gptq import Packing, quantise_folder

Train = Callable[..., tuple[bytes, list[loop.StepMeasurement]]]
DTYPES = ["float32", "bfloat16"]
MODULES = dict.fromkeys(["llama", "qwen2"], RECIPE["target_modules"]) | {"qwen3": ["q_proj", "v_proj", "up_proj"]}
"""All layers, and some of those that read one input."""


@pytest.fixture
def samples(base: LoadedBase, dataset: Path) -> list[Sample]:
    return tokenize_rows(data.load_rows(dataset, data.TRAIN), base.chat, max_length=128)


@pytest.fixture
def train(base_folder: Path, dataset: Path) -> Train:
    """Return a function that trains as the worker does: the adapter's bytes and the steps."""

    def run(**changes: Any) -> tuple[bytes, list[loop.StepMeasurement]]:
        recipe = {**RECIPE, **changes}
        machine.use_determinism(recipe["seed"])
        dtype = recipe["compute_dtype"]
        base = load_base(base_folder, quantisation="nf4-double", compute_dtype=dtype, device="cpu")
        rows = tokenize_rows(data.load_rows(dataset, data.TRAIN), base.chat, max_length=recipe["max_length"])
        attached = methods.attach_adapter(base, recipe)
        steps: list[loop.StepMeasurement] = []
        loop.train(base, attached, rows, recipe, steps.append)
        return methods.encode_adapter(attached, "tiny")[0], steps

    return run


@pytest.mark.essential
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_recipe_gives_the_same_bytes_and_another_seed_other_ones(train: Train, dtype: str) -> None:
    first, second = train(compute_dtype=dtype), train(compute_dtype=dtype)
    assert first[0] == second[0]
    assert [step.loss for step in first[1]] == [step.loss for step in second[1]]
    assert train(compute_dtype=dtype, seed=8)[0] != first[0]


PINNED = {
    "float32": ([6.838983, 6.168574, 5.630016, 4.590994, 4.399533, 4.540407], 1e-3),
    "bfloat16": ([6.841823, 6.179172, 5.651822, 4.611126, 4.400190, 4.545409], 5e-3),
}
"""The losses of every step, and by how much another processor's kernels may round them elsewhere."""


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", PINNED)
def test_the_losses_of_a_tiny_run_are_those_of_this_page(train: Train, dtype: str) -> None:
    """Whatever is made quicker trains the same: the order of the rows, the rate, the loss, the gradient, the step."""
    losses, tolerance = PINNED[dtype]
    _, steps = train(compute_dtype=dtype, dropout="0.0")
    assert [step.loss for step in steps] == pytest.approx(losses, rel=tolerance)


@pytest.mark.thorough
@pytest.mark.parametrize("again", ["mlp", "layer"])
@pytest.mark.parametrize("method", ["qlora", "dora"])
def test_gradient_checkpointing_changes_memory_and_no_byte(train: Train, again: str, method: str) -> None:
    """Dropout included, by the quick way through the layers and by the library's own."""
    assert train(gradient_checkpointing=again, method=method)[0] == train(method=method)[0]


@pytest.mark.thorough
def test_training_lowers_the_loss_and_counts_the_answers_tokens(train: Train, base: LoadedBase, dataset: Path) -> None:
    _, steps = train(epochs=12, gradient_accumulation_steps=1)
    rows = data.load_rows(dataset, data.TRAIN)
    assert steps[-1].loss < steps[0].loss / 2
    assert steps[-1].trained_tokens == 12 * sum(len(base.chat.encode(row.parts[0][1])) for row in rows)
    assert steps[-1].tokens == 12 * sum(len(base.chat.encode("".join(row.parts[0]))) for row in rows)
    assert [step.step for step in steps] == list(range(1, len(steps) + 1))
    for step in steps:
        own = dict(step.row_losses)
        sizes = {row.index: len(base.chat.encode(row.parts[0][1])) for row in rows if row.index in own}
        assert sum(own[row] * sizes[row] for row in own) / sum(sizes.values()) == pytest.approx(step.loss)
    assert steps[-1].steps == len(steps) == 12 * -(-len(rows) // 4)


def _reference_loss(base: LoadedBase, samples: list[Sample]) -> torch.Tensor:
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


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    ("method", "quantisation"),
    [("qlora", "nf4-double"), ("rslora", "none"), ("dora", "nf4-double"), ("lora", "gptq")],
)
def test_loss_and_gradients_are_those_of_the_answers_alone(
    tmp_path: Path, dataset: Path, kind: str, method: str, quantisation: str
) -> None:
    """Packed, head only where there is a loss, in two parts: the same as the plain sum over whole sequences."""
    machine.use_determinism(1)
    folder = build_base(tmp_path / kind, kind)
    if quantisation == "gptq":
        folder = quantise_folder(folder, tmp_path / "gptq", Packing(sym=False, checkpoint_format="gptq_v2"))
    base = load_base(folder, quantisation=quantisation, compute_dtype="float32", device="cpu")
    samples = tokenize_rows(data.load_rows(dataset, data.TRAIN), base.chat, max_length=128)
    recipe = {**RECIPE, "dropout": "0.0", "method": method, "target_modules": MODULES[kind]}
    model = methods.attach_adapter(base, recipe).model
    parameters = methods.list_trainable(model)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.01)
    batch = samples[:7]
    answers = sum(sample.trained_tokens for sample in batch)
    decoder = loop.begin_decoder(base, recipe)
    assert (decoder is None) == (method == "dora")
    losses = torch.cat([loop.sample_losses(base, decoder, part) for part in loop.split_batch(batch, 4)])
    (losses.sum() / answers).backward()
    ours = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
    model.zero_grad()
    expected = _reference_loss(base, batch)
    expected.backward()
    assert losses.sum().item() / answers == pytest.approx(expected.item(), rel=1e-5)
    assert len(ours) == len(parameters)
    for mine, parameter in zip(ours, parameters, strict=True):
        assert torch.allclose(mine, parameter.grad, atol=1e-5 + 1e-3 * parameter.grad.abs().max().item())


@pytest.mark.parametrize("block", [scores.SCORE_BLOCK, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.2)])
def test_a_neighbour_moves_no_logit(
    base_folder: Path, monkeypatch: pytest.MonkeyPatch, block: int, dtype: str, tolerance: float
) -> None:
    """With all scores at once, and a block of queries after the other: as each sequence alone, in the library."""
    monkeypatch.setattr(scores, "SCORE_BLOCK", block)
    machine.use_determinism(1)
    base = load_base(base_folder, quantisation="nf4-double", compute_dtype=dtype, device="cpu")
    methods.attach_adapter(base, {**RECIPE, "dropout": "0.0"})
    decoder = loop.begin_decoder(base, RECIPE)
    assert decoder is not None
    common = [1, 50, 60, 70, 80]
    sequences = [common + tail for tail in ([5, 6, 7], [9, 8, 7, 6, 5, 4], [11], [12, 13])]
    for together in (sequences, sequences[:1], [tail[4:] for tail in sequences]):
        pack, segments = packing.pack_sequences(together)
        with torch.no_grad():
            hidden = decoder.hidden(pack, "cpu")
            for ids, segment in zip(together, segments, strict=True):
                own = segment.stop - segment.start
                alone = base.hidden(input_ids=torch.tensor([ids]), use_cache=False)[0][-own:]
                difference = (hidden[segment.start : segment.stop] - alone) @ base.head().weight.T
                assert difference.float().abs().max().item() < tolerance


def test_the_head_is_the_same_in_chunks_trained_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "LOGIT_CHUNK", 3)
    generator = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(8, 5, generator=generator), torch.randn(11, 5, generator=generator)
    targets = torch.randint(11, (8,), generator=generator)
    gradients = []
    for trained in (False, True):
        one, head = hidden.clone().requires_grad_(), weight.clone().requires_grad_(trained)
        losses = loss.token_losses(Head(head), one, targets)
        assert torch.allclose(losses, torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="none"))
        (losses * torch.arange(8)).sum().backward()
        gradients.append(one.grad)
        assert (head.grad is not None) == trained
    assert torch.allclose(*gradients, atol=1e-6)  # type: ignore[arg-type]


class _Logits(TorchDispatchMode):
    """Counts the most rows of any tensor as wide as the vocabulary that is made within."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.words, self.rows = words, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **kwargs or {})
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.dim() == 2 and tensor.shape[1] == self.words:
                self.rows = max(self.rows, len(tensor))
        return made


@pytest.mark.parametrize("trained", [False, True])
def test_the_logits_of_a_long_sequence_never_stand_in_memory_whole(trained: bool) -> None:
    """Neither forward nor backward, whether or not the head is trained."""
    hidden, weight = torch.randn(5 * loss.LOGIT_CHUNK, 8, requires_grad=True), torch.randn(97, 8, requires_grad=trained)
    with _Logits(97) as seen:
        loss.token_losses(Head(weight), hidden, torch.zeros(len(hidden), dtype=torch.long)).sum().backward()
    assert 0 < seen.rows <= loss.LOGIT_CHUNK


@pytest.mark.thorough
def test_accumulation_is_normalised_by_token_not_by_part(train: Train) -> None:
    """One batch of eight and four batches of two are the same step, however the answers' lengths fall."""
    whole, parts = (
        train(batch_size=8, gradient_accumulation_steps=1, dropout="0.0"),
        train(batch_size=2, gradient_accumulation_steps=4, dropout="0.0"),
    )
    assert len(whole[1]) == len(parts[1])
    for one, other in zip(whole[1], parts[1], strict=True):
        assert one.loss == pytest.approx(other.loss, rel=2e-3)


def test_a_sample_over_max_length_is_an_error_naming_its_row(train: Train) -> None:
    with pytest.raises(BadInput, match=r"dataset, row 0: expected at most 20 tokens \(max_length\), got \d+"):
        train(max_length=20)


def test_the_spans_of_a_sample_are_its_answer_and_nothing_else(base: LoadedBase, dataset: Path) -> None:
    rows = data.load_rows(dataset, data.TRAIN)
    for row, sample in zip(rows, tokenize_rows(rows, base.chat, max_length=128), strict=True):
        ((start, stop),) = sample.spans
        assert [sample.ids[:start], sample.ids[start:stop]] == [tuple(base.chat.encode(part)) for part in row.parts[0]]
        assert (stop, sample.trained_tokens) == (len(sample.ids), stop - start)


def test_nothing_to_train_on_is_an_error(base: LoadedBase) -> None:
    row = data.RenderedRow(index=4, split="train", text="t", answer="", parts=(("<|im_start|>", ""),))
    with pytest.raises(BadInput, match="row 4: expected tokens to train on, got none"):
        tokenize_rows([row], base.chat, max_length=10)
    with pytest.raises(BadInput, match="expected rows to train on, got none"):
        tokenize_rows([], base.chat, max_length=10)


def test_a_loss_that_is_no_number_stops_the_run(base: LoadedBase, samples: list[Sample]) -> None:
    attached = methods.attach_adapter(base, RECIPE)
    with torch.no_grad():
        methods.list_trainable(attached.model)[0].fill_(float("nan"))
    steps: list[loop.StepMeasurement] = []
    with pytest.raises(
        BadInput, match=r"step 1: expected a finite loss, got nan in rows \d+, .*before the first update, so base tiny"
    ) as caught:
        loop.train(base, attached, samples, RECIPE, steps.append)
    assert caught.value.code == "base-not-finite" and "learning_rate" not in caught.value.message
    assert not steps, "a step that failed is none"


def test_a_loss_that_is_no_number_names_its_rows_and_a_gradient_its_norm() -> None:
    nan = float("nan")
    assert loop.describe_break({7: 1.0, 5: nan, 3: float("inf")}, nan) == (
        "expected a finite loss, got inf in rows 3, 5"
    )
    assert loop.describe_break(dict.fromkeys(range(9), nan), nan).endswith("rows 0, 1, 2, 3, 4, 5, 6, 7, ...")
    assert loop.describe_break({1: 1.0}, float("inf")) == "expected a finite gradient, got the norm inf"


def test_only_the_adapter_is_trained(base: LoadedBase) -> None:
    model = methods.attach_adapter(base, {**RECIPE, "target_modules": ["q_proj", "v_proj"]}).model
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(names) == 2 * 2 * 2, "A and B of two projections in two layers"
    assert all(".lora_A." in name or ".lora_B." in name for name in names)


def test_the_files_are_what_peft_reads(base: LoadedBase, samples: list[Sample], tmp_path: Path) -> None:
    from peft import PeftConfig

    attached = methods.attach_adapter(base, RECIPE)
    weights, config = methods.encode_adapter(attached, "tiny")
    (tmp_path / "adapter_config.json").write_bytes(config)
    read = PeftConfig.from_pretrained(str(tmp_path))
    assert (read.r, read.lora_alpha, sorted(read.target_modules)) == (8, 16, sorted(RECIPE["target_modules"]))
    assert json.loads(config)["base_model_name_or_path"] == "tiny", "no path of the machine that trained"
    assert len(safetensors.torch.load(weights)) == 2 * 7 * 2


def test_an_unknown_method_is_refused(base: LoadedBase) -> None:
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


def test_long_samples_are_computed_with_long_ones(samples: list[Sample]) -> None:
    """However the step drew them, and the last part alone may be short of samples."""
    parts = [[len(sample.ids) for sample in part] for part in loop.split_batch(samples[::-1], 4)]
    assert [size for part in parts for size in part] == sorted(len(sample.ids) for sample in samples)
    assert {len(part) for part in parts[:-1]} == {4}


def test_a_part_holds_no_more_tokens_than_fit(samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "PACK_TOKENS", 100)
    sizes = [sum(len(sample.ids) for sample in part) for part in loop.split_batch(samples, 64)]
    assert max(sizes) <= 100
    assert min(sizes) > 0
