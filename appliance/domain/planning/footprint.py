"""How much memory a run will take, by phase and part: arithmetic over base, dataset and recipe, before anything runs.

What the training path keeps for each token is written out in `ml/layers/decoder.py`, and counted here. What cannot be
counted (the interpreter and its libraries, what an allocator leaves unused) is measured: the constants below say by
what, and docs/planning.md holds predictions against measured peaks.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from appliance.domain.core.names import Value
from appliance.domain.planning.shape import JOINED, Lengths, Packed, Shape
from appliance.domain.recipe.methods import METHODS, STARTED
from appliance.domain.recipe.recipe import ResolvedRecipe, count_steps
from appliance.errors import BadInput

PACK_TOKENS = 2048
"""Tokens of a pack (`ml/training/loop.py`, `ml/evaluation/evaluation.py`). A test compares these, and the next two."""
CHUNK = 128
"""Places whose logits stand in memory at once in training (`ml/training/loss.py`)."""
HEAD_ROWS = 512
"""The same in evaluation (`ml/layers/head.py`)."""
BLOCK = 128
"""Queries of a segment whose attention scores are held at once (`ml/layers/scores.py`)."""
KEPT_BYTES = 1_000_000_000
"""Of dequantised weights that are kept between their uses, where nothing is computed again (`ml/layers/decoder.py`)."""

MB = 1_000_000
LIBRARIES = 465 * MB
"""The interpreter with torch, transformers, peft and bitsandbytes, once they have computed: CPU build, measured."""
CARD_CONTEXT = 600 * MB
"""What CUDA itself takes of a card; not measured here."""
LEFT_BY_LOADING = 48 * MB
"""What a process on the CPU keeps of what loading needed; measured."""

_MOST_DRAWN = 2_000
"""So many steps are drawn to find the largest: more of them hardly find a larger one."""


class Parts(Value):
    """Bytes by what they are for. `context`: the process and its libraries, or what CUDA takes of a card."""

    context: int = Field(ge=0)
    weights: int = Field(ge=0)
    adapter: int = Field(ge=0, default=0)
    optimiser: int = Field(ge=0, default=0)
    gradients: int = Field(ge=0, default=0)
    activations: int = Field(ge=0, default=0)
    logits: int = Field(ge=0, default=0)
    checkpoint: int = Field(ge=0, default=0)

    @property
    def total(self) -> int:
        return sum(self.model_dump().values())


class Footprint(Value):
    """The most that each phase holds. `save` is the writing of a training checkpoint, between two steps; evaluation is
    another process, after the first has ended."""

    load: Parts
    train: Parts
    save: Parts
    evaluate: Parts

    @property
    def training_peak(self) -> int:
        """Of the training worker: what its record calls `peak_bytes`."""
        return max(self.load.total, self.train.total, self.save.total)

    @property
    def peak(self) -> int:
        return max(self.training_peak, self.evaluate.total)

    @property
    def phases(self) -> dict[str, Parts]:
        return {"load": self.load, "train": self.train, "save": self.save, "evaluate": self.evaluate}

    @property
    def largest(self) -> tuple[str, Parts]:
        return max(self.phases.items(), key=lambda item: item[1].total)


@dataclass(frozen=True)
class Pack:
    """What goes through the model at once: all its tokens, the segments behind a common beginning, and the longest."""

    tokens: int
    segments: int
    root: int
    longest: int
    trained: int

    @property
    def scores(self) -> int:
        """Attention scores of a layer, a head."""
        return self.segments * self.longest * (self.root + self.longest) + self.root**2

    @property
    def held_scores(self) -> int:
        """Those that are held at once."""
        own = self.segments * min(BLOCK, self.longest) * (self.root + self.longest)
        return max(own, min(BLOCK, self.root) * self.root)


def count_trained_rows(recipe: ResolvedRecipe, rows: int) -> int:
    """Of the training rows those that are not validated with."""
    return max(1, round(rows * (1 - float(recipe.validation))))


def draw_packs(lengths: Lengths, recipe: ResolvedRecipe, rows: int) -> Iterator[Pack]:
    """The packs of a run with rows of these lengths. The order is not the run's own, which torch draws; a run's largest
    pack is found by drawing as many steps as it has."""
    rows = count_trained_rows(recipe, rows)
    spread, size = lengths.spread(rows), recipe.batch_size * recipe.accumulation
    steps = min(_MOST_DRAWN, count_steps(rows, recipe.epochs, size))
    draw = random.Random(recipe.seed)
    order: list[int] = []
    for _ in range(steps):
        if not order:
            order = draw.sample(spread, rows)
        step, order = sorted(order[:size]), order[size:]
        for rank in range(recipe.processes):
            for part in _split(step[rank :: recipe.processes], 1 if recipe.privacy else recipe.batch_size):
                yield make_pack(part, lengths)
    yield make_pack([lengths.longest], lengths)


def _split(step: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """As the loop does (`split_batch`)."""
    part: list[int] = []
    for length in step:
        if part and (sum(part) + length > PACK_TOKENS or len(part) == batch_size):
            yield part
            part = []
        part.append(length)
    if part:
        yield part


def make_pack(rows: Sequence[int], lengths: Lengths) -> Pack:
    root = min(lengths.shared, min(rows) - 1) if len(rows) > 1 else 0
    tokens = sum(rows) - root * (len(rows) - 1)
    return Pack(tokens, len(rows), root, max(rows) - root, min(tokens, len(rows) * lengths.trained))


@dataclass(frozen=True)
class Subject:
    """What a run is made of. `stored`: bytes of a weight in the base's files; `packed`: the linear layers' own there,
    where they are GPTQ."""

    shape: Shape
    stored: int
    lengths: Lengths
    rows: int
    held_out: int
    packed: Packed | None = None


def count_trainable(shape: Shape, recipe: ResolvedRecipe) -> int:
    """Weights that are trained; for a method that begins elsewhere than at zero, those held still beside them too."""
    if recipe.method == "full":
        return shape.parameters
    sizes = [(rows, columns) for _, rows, columns in shape.adapted(recipe.target_modules)]
    if recipe.method == "ia3":
        return shape.layers * (2 * shape.key + shape.inner)
    rank = recipe.rank * (2 if recipe.method in STARTED else 1)
    magnitude = sum(columns for _, columns in sizes) if recipe.method == "dora" else 0
    linear = shape.layers * (magnitude + sum(rank * (rows + columns) for rows, columns in sizes))
    return linear + shape.expert_adapter(recipe.target_modules, rank)


def is_quick(recipe: ResolvedRecipe, shape: Shape) -> bool:
    """Whether training uses the layers written out by hand, as `begin_decoder` in `ml/training/loop.py` decides."""
    plain = METHODS[recipe.method].plain and recipe.method not in STARTED
    return plain and recipe.quantisation != "int8" and not shape.library


def kept_weights(shape: Shape, recipe: ResolvedRecipe) -> int:
    """Bytes of frozen weights that training keeps in the compute dtype beside the base's own."""
    size = compute_bytes(recipe)
    if (
        not is_quick(recipe, shape)
        or recipe.gradient_checkpointing != "none"
        or size * shape.linear_weights > KEPT_BYTES
    ):
        return 0
    if recipe.quantisation != "none":
        return size * shape.linear_weights
    # Those of layers that read one input are joined; the others are the base's own.
    joined = [role for roles in JOINED if len(roles) > 1 for role in roles if not shape.fused]
    return size * shape.layers * sum(shape.hidden * shape.linear[role][1] for role in joined)


def plan_memory(subject: Subject, recipe: ResolvedRecipe) -> Footprint:
    """The most of each phase, on the recipe's device."""
    host = recipe.device == "cpu"
    # Loading GPTQ maps the file, and makes nothing that is left.
    left = 0 if recipe.quantisation == "gptq" else LEFT_BY_LOADING
    context = LIBRARIES + left if host else CARD_CONTEXT
    held, loading = _weights(subject, recipe, host=host)
    load = Parts(context=context, weights=held + loading)
    packs = set(draw_packs(subject.lengths, recipe, subject.rows))
    largest = max((_train(subject, recipe, pack, context, held) for pack in packs), key=lambda parts: parts.total)
    save = _save(subject, recipe, largest, host=host)
    if host and recipe.processes > 1:
        # Each process holds its own of everything; the first alone writes a training checkpoint.
        load, largest, save = (_of_processes(parts, recipe.processes) for parts in (load, largest, save))
    return Footprint(load=load, train=largest, save=save, evaluate=_evaluate(subject, recipe, context, host=host))


def _of_processes(parts: Parts, count: int) -> Parts:
    each = {name: count * size for name, size in parts.model_dump(exclude={"checkpoint"}).items()}
    return Parts(**each, checkpoint=parts.checkpoint)


def compute_bytes(recipe: ResolvedRecipe) -> int:
    """Of a number in the compute dtype."""
    return 2 if recipe.compute_dtype == "bfloat16" else 4


QUANTISED = {"nf4-double": 0.5 + 1 / 64, "int8": 1.0}
"""Bytes of a quantised weight, with its share of a block's scale."""
SCALES = 4 / 64
"""Bytes of a weight's share of a block's scale in float32: what training over NF4 undoes once."""


DEQUANTISING = 16 * MB
"""What is in memory while GPTQ is dequantised: a chunk in int32 and in float32, and their factors
(`ml/quantised/linear.py`)."""


def _weights(subject: Subject, recipe: ResolvedRecipe, *, host: bool) -> tuple[int, int]:
    """What the base holds, and what loading needs on top for a moment.

    On the CPU the base's file is mapped: weights that stay in its dtype are the file itself, all of which is then
    resident, also where others were made from it.
    """
    shape, size = subject.shape, compute_bytes(recipe)
    others = max(0, shape.parameters - shape.linear_weights)
    file = subject.stored * shape.parameters if host else 0
    if recipe.method == "full":
        return 4 * shape.parameters, file
    if recipe.quantisation == "none":
        same = host and size == subject.stored
        return (file, 0) if same else (size * shape.parameters, file)
    if recipe.quantisation == "gptq":
        return _weigh_packed(subject, others, size, host=host), 0
    if recipe.quantisation == "nf4-double" and host and not shape.library:
        # Made at import and mapped (`ml/quantised/nf4.py`); layers by hand join them in a copy.
        share = QUANTISED["nf4-double"] + (0.5 + SCALES if is_quick(recipe, shape) else 0.0)
        cast = 0 if size == subject.stored else size * others
        return round(shape.linear_weights * share) + subject.stored * others + cast, 0
    share = QUANTISED[recipe.quantisation] + (SCALES if is_quick(recipe, shape) else 0.0)
    packed = round(shape.linear_weights * share)
    if host and size == subject.stored:
        return packed + file, 0
    return packed + size * others, file


def _weigh_packed(subject: Subject, others: int, size: int, *, host: bool) -> int:
    """GPTQ's tensors are the mapped file's own on the CPU; what is not packed is float16 there, and made anew."""
    if subject.packed is None:
        raise BadInput("plan, base: expected one that was imported in GPTQ, got another")
    stored, beside = subject.packed.count_bytes(subject.shape)
    return stored + beside + (subject.stored * others if host else 0) + size * others + DEQUANTISING


def _cast_numbers(shape: Shape, recipe: ResolvedRecipe) -> int:
    """Of all A and B in the compute dtype: B's rows are as long as the ranks of all layers that share its matrix."""
    numbers, rank = 0, recipe.rank
    adapted = shape.adapted(recipe.target_modules)
    for roles in JOINED:
        some = [rows for own, rows, _ in adapted if own[0] in roles]
        columns = sum(shape.linear[role][1] for role in roles)
        numbers += rank * (sum(some) + columns * len(some))
    return shape.layers * numbers


def _train(subject: Subject, recipe: ResolvedRecipe, pack: Pack, context: int, weights: int) -> Parts:
    shape, size, trainable = subject.shape, compute_bytes(recipe), count_trainable(subject.shape, recipe)
    full = recipe.method == "full"
    cast = size * _cast_numbers(shape, recipe) if is_quick(recipe, shape) else 0
    eight_bit = recipe.optimiser != "adamw"
    copies = shape.linear_weights * size if full and size < 4 else 0
    varied = subject.lengths.quantiles[0] < subject.lengths.longest
    fragments = FRAGMENTS + (GAPS if varied else 0.0)
    activations = _quick(shape, recipe, pack, fragments) if is_quick(recipe, shape) else _plain(shape, recipe, pack)
    return Parts(
        context=context,
        weights=weights + copies + kept_weights(shape, recipe),
        adapter=0 if full else trainable * 4 + cast,
        optimiser=round(trainable * (2 + 2 / 64)) if eight_bit else 8 * trainable,
        # A private step has a row's gradients beside the sum of all, and noise, in float64.
        gradients=(4 + (24 if recipe.privacy else 0)) * trainable,
        activations=activations,
        logits=_logits(shape, recipe, pack),
    )


def _save(subject: Subject, recipe: ResolvedRecipe, train: Parts, *, host: bool) -> Parts:
    """A training checkpoint is in the host's memory twice while it is encoded: once tensor by tensor, whose pieces
    find room in what the step before has freed and the allocator keeps, and once whole, which does not."""
    checkpoint = checkpoint_bytes(subject.shape, recipe) if host else 0
    kept = train.activations
    pieces = max(0, checkpoint + min(round(KEPT_SHARE * kept), MOST_KEPT) - kept)
    beside = SAVING if host else 0
    return train.model_copy(update={"logits": 0, "checkpoint": checkpoint + pieces + beside if checkpoint else 0})


def checkpoint_bytes(shape: Shape, recipe: ResolvedRecipe) -> int:
    """Weights and what the optimiser remembers of them; with early stopping the best weights too."""
    numbers = 4 + (4 if recipe.early_stopping else 0) + (8 if recipe.optimiser == "adamw" else 2 + 2 / 64)
    return round(numbers * count_trainable(shape, recipe))


def _logits(shape: Shape, recipe: ResolvedRecipe, pack: Pack) -> int:
    """A chunk's in the compute dtype, twice in float32, and back; where the head is trained, its gradients too."""
    size = 4 if recipe.method == "full" else compute_bytes(recipe)
    chunk = min(CHUNK, pack.trained) * shape.words * (2 * size + 8)
    return chunk + (2 * 4 * shape.head_weights if recipe.method == "full" else 0)


# What an allocator leaves unused between tensors that live long, of their bytes: measured on the CPU.
FRAGMENTS = 0.1
# And what more, where every step's tensors have other sizes.
GAPS = 0.06
# Attention scores that stand beside one another in a backward pass: measured.
COPIES = 4
# Of what a step has freed, what is in the way of a checkpoint's pieces; and what encoding an adapter takes. Measured.
KEPT_SHARE, MOST_KEPT, SAVING = 0.8, 720 * MB, 30 * MB
# What the library's own modules hold of what their operations save, measured for DoRA and LLM.int8.
LIBRARY_TIMES = {"full": 1.0, "dora": 1.95}
OTHER_LIBRARY_TIMES = 1.35


def _quick(shape: Shape, recipe: ResolvedRecipe, pack: Pack, fragments: float) -> int:
    """`ml/layers/decoder.py`: what every layer keeps, and what one layer needs beside in its backward pass."""
    size, rank, targets = compute_bytes(recipe), recipe.rank, recipe.target_modules
    low = {name: 0 for name in shape.linear} | {roles[0]: rank for roles, _, _ in shape.adapted(targets)}
    attention = shape.hidden + 2 * (shape.query + shape.key) + sum(low[f"{name}_proj"] for name in "qkvo")
    wide = 2 * shape.inner + low["gate_proj"] + low["up_proj"] + low["down_proj"]
    again = {"none": 0, "mlp": wide, "layer": wide + attention}[recipe.gradient_checkpointing]
    kept = shape.hidden + attention + wide - again
    passing = again + 6 * shape.inner + 12 * shape.hidden
    scores = COPIES * pack.held_scores * shape.heads
    made = 0 if kept_weights(shape, recipe) else 2 * shape.hidden * shape.inner
    layers = round(shape.layers * kept * pack.tokens * (1 + fragments))
    return size * (layers + passing * pack.tokens + scores + made)


def _plain(shape: Shape, recipe: ResolvedRecipe, pack: Pack) -> int:
    """The library's own modules under autograd: estimated from what each operation saves."""
    size, stream = compute_bytes(recipe), 4 if recipe.method == "full" else compute_bytes(recipe)
    norms = shape.hidden * (stream + 4 + size) * 2
    attention = (2 * shape.query + 2 * shape.key) * (size + 4)
    wide = 4 * max(shape.inner, shape.chosen * shape.expert_inner) * size
    low = 0 if recipe.method in ("full", "ia3") else 4 * sum(rows for rows, _ in shape.linear.values())
    held = (norms + attention + wide + low) * pack.tokens + 4 * shape.heads * pack.scores
    layer = round(held * LIBRARY_TIMES.get(recipe.method, OTHER_LIBRARY_TIMES))
    # With an adapter on them, a layer's experts are made anew, all of them, and kept for the backward pass.
    made = 0
    if shape.expert_adapter(recipe.target_modules, 1):
        made = 2 * size * shape.experts * shape.expert_weights // max(1, shape.expert_layers)
    if recipe.gradient_checkpointing == "none":
        return shape.layers * layer + shape.expert_layers * made
    return shape.layers * shape.hidden * stream * pack.tokens + 2 * (layer + made)


def _evaluate(subject: Subject, recipe: ResolvedRecipe, context: int, *, host: bool) -> Parts:
    """Another process, without gradients; a baseline's own weights are read into a base beside it."""
    shape, size = subject.shape, compute_bytes(recipe)
    judged = recipe.model_copy(update={"method": "lora"}) if recipe.method == "full" else recipe
    weights, _ = _weights(subject, judged, host=host)
    weights += _beside(subject.packed, recipe, shape, host=host)
    own = size * shape.parameters if recipe.method == "full" else 4 * count_trainable(shape, recipe)
    tokens = max(PACK_TOKENS, subject.lengths.longest)
    wide = tokens * (3 * shape.inner + 6 * shape.hidden) * size
    # Keys and values of a pass, which the search for a label goes on from.
    held = 2 * shape.layers * shape.key * tokens * size
    return Parts(
        context=context,
        weights=weights,
        adapter=2 * own,
        activations=wide + held + 4 * 3 * shape.heads * min(BLOCK, subject.lengths.longest) * subject.lengths.longest,
        logits=HEAD_ROWS * shape.words * (size + 4),
    )


def _beside(packed: Packed | None, recipe: ResolvedRecipe, shape: Shape, *, host: bool) -> int:
    """What an evaluation makes of quantised weights: dequantised ones that are kept (`ml/layers/reader.py`), and of
    GPTQ on the CPU in bfloat16 what few rows are multiplied by (`ml/quantised/few_rows.py`)."""
    size = compute_bytes(recipe)
    made = size * shape.linear_weights if is_quick(recipe, shape) and recipe.quantisation != "none" else 0
    few = 0 if packed is None or not host or size != 2 else sum(packed.count_bytes(shape))
    return (made if made <= KEPT_BYTES else 0) + few


def stored_bytes(facts: Any) -> int:
    """Of a weight in a base's files, by its entry; the wider where it says nothing."""
    return 2 if facts.get("dtype") in ("bfloat16", "float16") else 4
