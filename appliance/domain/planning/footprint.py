"""Predicted memory of a run, by phase and part, computed from base, dataset and recipe.

The bytes that training keeps for each token are counted after `ml/layers/decoder.py`. Other parts (the interpreter and
its libraries, memory that an allocator leaves unused) cannot be counted. For them the constants below have measured
values, and say how they were measured. docs/guides/planning.md compares predictions with measured peaks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from appliance.domain.core.names import Value
from appliance.domain.planning.packs import (
    HEAD_ROWS,
    KEPT_BYTES,
    LOGIT_CHUNK,
    PACK_TOKENS,
    SCORE_BLOCK,
    PlannedPack,
    draw_packs,
)
from appliance.domain.planning.shape import JOINED, DecoderShape, GptqForm, Lengths
from appliance.domain.recipe.methods import METHODS, STARTED
from appliance.domain.recipe.recipe import ResolvedRecipe
from appliance.errors import BadInput

MB = 1_000_000
"""Bytes of a megabyte."""
LIBRARIES = 515 * MB
"""Bytes of the interpreter with torch, transformers, peft and bitsandbytes after computing, for the CPU build.

447 MB were measured on an AMD processor. About 45 MB more were reported on an Intel processor with AMX.
"""
HEAD_COPIES = 3
"""Copies of the output head in another layout that a matrix library may hold when it trains in bfloat16.

An evaluation holds one. The number is an allowance and not counted from code: runs on an Intel processor with AMX took
up to 16 % more than a plan without it.
"""
CARD_CONTEXT = 600 * MB
"""Bytes of a card's memory that CUDA itself uses. Not measured here."""
LEFT_BY_LOADING = 48 * MB
"""Bytes that a process on the CPU keeps after loading. Measured."""


class Parts(Value):
    """Bytes by purpose. `context` is the process with its libraries or, on a card, the memory of CUDA itself."""

    context: int = Field(ge=0)
    weights: int = Field(ge=0)
    adapter: int = Field(ge=0, default=0)
    optimiser: int = Field(ge=0, default=0)
    gradients: int = Field(ge=0, default=0)
    activations: int = Field(ge=0, default=0)
    logits: int = Field(ge=0, default=0)
    workspace: int = Field(
        ge=0, default=0, description="matrices that the matrix library of the processor holds in its own layout"
    )
    checkpoint: int = Field(ge=0, default=0)

    @property
    def total(self) -> int:
        """Return the sum of all parts, in bytes."""
        return sum(self.model_dump().values())


class Footprint(Value):
    """The largest memory of each phase.

    `save` is the writing of a training checkpoint, between two steps. `evaluate` is a separate process, which starts
    after the training worker has ended.
    """

    load: Parts
    train: Parts
    save: Parts
    evaluate: Parts

    @property
    def training_peak(self) -> int:
        """Return the peak of the training worker in bytes, which its record calls `peak_bytes`."""
        return max(self.load.total, self.train.total, self.save.total)

    @property
    def peak(self) -> int:
        """Return the peak of all phases in bytes."""
        return max(self.training_peak, self.evaluate.total)

    @property
    def phases(self) -> dict[str, Parts]:
        """Return the parts of each phase, by its name."""
        return {"load": self.load, "train": self.train, "save": self.save, "evaluate": self.evaluate}

    @property
    def largest(self) -> tuple[str, Parts]:
        """Return the name and the parts of the phase with the largest total."""
        return max(self.phases.items(), key=lambda item: item[1].total)


@dataclass(frozen=True)
class Subject:
    """The base and the dataset of a run.

    `stored`: bytes of a weight in the base's files. `rows`, `held_out`: numbers of training rows and held-out rows.
    `packed`: the form of the linear layers in GPTQ files. `near_held_out`: held-out rows that are nearly the same as a
    training row.
    """

    shape: DecoderShape
    stored: int
    lengths: Lengths
    rows: int
    held_out: int
    packed: GptqForm | None = None
    near_held_out: int = 0


def count_trainable(shape: DecoderShape, recipe: ResolvedRecipe) -> int:
    """Return the number of trained weights. For methods in STARTED, the fixed first weights are included."""
    if recipe.method == "full":
        return shape.parameters
    sizes = [(rows, columns) for _, rows, columns in shape.adapted(recipe.target_modules)]
    if recipe.method == "ia3":
        return shape.layers * (2 * shape.key + shape.inner)
    rank = recipe.rank * (2 if recipe.method in STARTED else 1)
    magnitude = sum(columns for _, columns in sizes) if recipe.method == "dora" else 0
    linear = shape.layers * (magnitude + sum(rank * (rows + columns) for rows, columns in sizes))
    return linear + shape.expert_adapter(recipe.target_modules, rank)


def is_quick(recipe: ResolvedRecipe, shape: DecoderShape) -> bool:
    """Return True if training uses the handwritten layers, as `begin_decoder` in `ml/training/loop.py` decides."""
    plain = METHODS[recipe.method].plain and recipe.method not in STARTED
    return plain and recipe.quantisation != "int8" and not shape.library


def kept_weights(shape: DecoderShape, recipe: ResolvedRecipe) -> int:
    """Return the bytes of frozen weights that training keeps in the compute dtype in addition to the base's own."""
    size = compute_bytes(recipe)
    if (
        not is_quick(recipe, shape)
        or recipe.gradient_checkpointing != "none"
        or size * shape.linear_weights > KEPT_BYTES
    ):
        return 0
    if recipe.quantisation != "none":
        return size * shape.linear_weights
    # Layers with the same input are joined in a copy; the others use the base's own weights.
    joined = [role for roles in JOINED if len(roles) > 1 for role in roles if not shape.fused]
    return size * shape.layers * sum(shape.hidden * shape.linear[role][1] for role in joined)


def plan_memory(subject: Subject, recipe: ResolvedRecipe) -> Footprint:
    """Return the largest memory of each phase, on the recipe's device."""
    host = recipe.device == "cpu"
    # Loading GPTQ maps the file and leaves no other memory.
    left = 0 if recipe.quantisation == "gptq" else LEFT_BY_LOADING
    context = LIBRARIES + left if host else CARD_CONTEXT
    held, loading = _count_weight_bytes(subject, recipe, host=host)
    load = Parts(context=context, weights=held + loading)
    packs = set(draw_packs(subject.lengths, recipe, subject.rows))
    largest = max(
        (_plan_training(subject, recipe, pack, context, held) for pack in packs), key=lambda parts: parts.total
    )
    save = _plan_save(subject, recipe, largest, host=host)
    if host and recipe.processes > 1:
        # Each process has its own copy of everything; only the first writes training checkpoints.
        load, largest, save = (_multiply_parts(parts, recipe.processes) for parts in (load, largest, save))
    return Footprint(
        load=load, train=largest, save=save, evaluate=_plan_evaluation(subject, recipe, context, host=host)
    )


def _multiply_parts(parts: Parts, count: int) -> Parts:
    each = {name: count * size for name, size in parts.model_dump(exclude={"checkpoint"}).items()}
    return Parts(**each, checkpoint=parts.checkpoint)


def compute_bytes(recipe: ResolvedRecipe) -> int:
    """Return the bytes of a number in the compute dtype."""
    return 2 if recipe.compute_dtype == "bfloat16" else 4


QUANTISED = {"nf4-double": 0.5 + 1 / 64, "int8": 1.0}
"""Bytes of a quantised weight, including its share of the scale of a block."""
SCALES = 4 / 64
"""Bytes of a weight's share of a block's scale in float32, which training over NF4 dequantises once."""


DEQUANTISING = 16 * MB
"""Bytes needed to dequantise GPTQ: a chunk in int32 and in float32, and its factors (`ml/quantised/linear.py`)."""


def _count_weight_bytes(subject: Subject, recipe: ResolvedRecipe, *, host: bool) -> tuple[int, int]:
    """Return the bytes of the base, and the bytes that loading needs temporarily in addition.

    On the CPU the base's file is mapped. Weights that keep its dtype are the file itself. All of the file is then
    resident, even if other weights were made from it.
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
        return _count_packed_bytes(subject, others, size, host=host), 0
    if recipe.quantisation == "nf4-double" and host and not shape.library:
        # NF4 weights are made at import and mapped (`ml/quantised/nf4.py`); handwritten layers join them in a copy.
        share = QUANTISED["nf4-double"] + (0.5 + SCALES if is_quick(recipe, shape) else 0.0)
        cast = 0 if size == subject.stored else size * others
        return round(shape.linear_weights * share) + subject.stored * others + cast, 0
    share = QUANTISED[recipe.quantisation] + (SCALES if is_quick(recipe, shape) else 0.0)
    packed = round(shape.linear_weights * share)
    if host and size == subject.stored:
        return packed + file, 0
    return packed + size * others, file


def _count_packed_bytes(subject: Subject, others: int, size: int, *, host: bool) -> int:
    """Return the bytes of a base in GPTQ.

    On the CPU its tensors are those of the mapped file; weights that are not packed are float16 there and are
    converted.
    """
    if subject.packed is None:
        raise BadInput("plan, base: expected one that was imported in GPTQ, got another")
    stored, beside = subject.packed.count_bytes(subject.shape)
    return stored + beside + (subject.stored * others if host else 0) + size * others + DEQUANTISING


def _count_cast_numbers(shape: DecoderShape, recipe: ResolvedRecipe) -> int:
    """Return the number of entries of all A and B in the compute dtype.

    The rows of B have the length of the ranks of all layers that share its matrix.
    """
    numbers, rank = 0, recipe.rank
    adapted = shape.adapted(recipe.target_modules)
    for roles in JOINED:
        some = [rows for own, rows, _ in adapted if own[0] in roles]
        columns = sum(shape.linear[role][1] for role in roles)
        numbers += rank * (sum(some) + columns * len(some))
    return shape.layers * numbers


def _plan_training(subject: Subject, recipe: ResolvedRecipe, pack: PlannedPack, context: int, weights: int) -> Parts:
    shape, size, trainable = subject.shape, compute_bytes(recipe), count_trainable(subject.shape, recipe)
    full = recipe.method == "full"
    cast = size * _count_cast_numbers(shape, recipe) if is_quick(recipe, shape) else 0
    eight_bit = recipe.optimiser != "adamw"
    copies = shape.linear_weights * size if full and size < 4 else 0
    varied = subject.lengths.quantiles[0] < subject.lengths.longest
    fragments = FRAGMENTS + (VARIED_FRAGMENTS if varied else 0.0)
    activations = (
        _count_quick_activations(shape, recipe, pack, fragments)
        if is_quick(recipe, shape)
        else _count_library_activations(shape, recipe, pack)
    )
    return Parts(
        context=context,
        weights=weights + copies + kept_weights(shape, recipe),
        adapter=0 if full else trainable * 4 + cast,
        optimiser=round(trainable * (2 + 2 / 64)) if eight_bit else 8 * trainable,
        # A private step also has the gradients of one row, and the sum of all gradients and the noise in float64.
        gradients=(4 + (24 if recipe.privacy else 0)) * trainable,
        activations=activations,
        logits=_count_logit_bytes(shape, recipe, pack),
        workspace=_count_workspace_bytes(shape, recipe, HEAD_COPIES, min(LOGIT_CHUNK, pack.trained)),
    )


def _count_workspace_bytes(shape: DecoderShape, recipe: ResolvedRecipe, copies: int, rows: int = 0) -> int:
    """Return the bytes of copies of the head, and of two float32 sums for products of this number of rows."""
    if recipe.device != "cpu" or compute_bytes(recipe) != 2:
        return 0
    return copies * 2 * shape.head_weights + 2 * 4 * rows * shape.words


def _plan_save(subject: Subject, recipe: ResolvedRecipe, train: Parts, *, host: bool) -> Parts:
    """Return the parts while a training checkpoint is written.

    While it is encoded, it is in the host's memory twice: tensor by tensor, and as a whole. Only a large step leaves
    enough free memory in the allocator for the tensors.
    """
    checkpoint = checkpoint_bytes(subject.shape, recipe) if host else 0
    free = max(0, train.activations - MAX_UNUSABLE_BYTES)
    pieces = max(0, checkpoint - free)
    beside = ENCODING_BYTES if host else 0
    return train.model_copy(update={"logits": 0, "checkpoint": checkpoint + pieces + beside if checkpoint else 0})


def checkpoint_bytes(shape: DecoderShape, recipe: ResolvedRecipe) -> int:
    """Return the bytes of a training checkpoint: weights, optimiser state and, with early stopping, best weights."""
    numbers = 4 + (4 if recipe.early_stopping else 0) + (8 if recipe.optimiser == "adamw" else 2 + 2 / 64)
    return round(numbers * count_trainable(shape, recipe))


def _count_logit_bytes(shape: DecoderShape, recipe: ResolvedRecipe, pack: PlannedPack) -> int:
    """Return the bytes of a chunk's logits: in the compute dtype, twice in float32, and back in the compute dtype.

    Where the head is trained, the gradients of the head are included.
    """
    size = 4 if recipe.method == "full" else compute_bytes(recipe)
    chunk = min(LOGIT_CHUNK, pack.trained) * shape.words * (2 * size + 8)
    return chunk + (2 * 4 * shape.head_weights if recipe.method == "full" else 0)


FRAGMENTS = 0.1
"""Share of the bytes of long-lived tensors that an allocator leaves unused between them. Measured on the CPU."""
VARIED_FRAGMENTS = 0.06
"""Additional share if tensors have other sizes in every step."""
SCORE_COPIES = 4
"""Copies of the attention scores that are in memory together in a backward pass. Measured."""
MAX_UNUSABLE_BYTES, ENCODING_BYTES = 720 * MB, 30 * MB
"""Bytes freed by a step that a checkpoint's tensors cannot use, and bytes for encoding an adapter. Measured."""
LIBRARY_TIMES = {"full": 1.0, "dora": 1.95}
"""Ratio of the memory of the library's modules to that of the saved tensors. Measured for DoRA and LLM.int8."""
OTHER_LIBRARY_TIMES = 1.35
"""The same ratio for methods that are not in LIBRARY_TIMES."""


def _count_quick_activations(shape: DecoderShape, recipe: ResolvedRecipe, pack: PlannedPack, fragments: float) -> int:
    """Return the bytes of activations with handwritten layers (`ml/layers/decoder.py`).

    They are those that every layer keeps, and those that one layer needs in addition in its backward pass.
    """
    size, rank, targets = compute_bytes(recipe), recipe.rank, recipe.target_modules
    low = {name: 0 for name in shape.linear} | {roles[0]: rank for roles, _, _ in shape.adapted(targets)}
    attention = shape.hidden + 2 * (shape.query + shape.key) + sum(low[f"{name}_proj"] for name in "qkvo")
    wide = 2 * shape.inner + low["gate_proj"] + low["up_proj"] + low["down_proj"]
    repeated = {"none": 0, "mlp": wide, "layer": wide + attention}[recipe.gradient_checkpointing]
    layer_numbers = shape.hidden + attention + wide - repeated
    backward_numbers = repeated + 6 * shape.inner + 12 * shape.hidden
    scores = SCORE_COPIES * pack.held_scores * shape.heads
    made = 0 if kept_weights(shape, recipe) else 2 * shape.hidden * shape.inner
    layers = round(shape.layers * layer_numbers * pack.tokens * (1 + fragments))
    return size * (layers + backward_numbers * pack.tokens + scores + made)


def _count_library_activations(shape: DecoderShape, recipe: ResolvedRecipe, pack: PlannedPack) -> int:
    """Return the bytes of activations with the library's modules, estimated from what each operation saves for
    autograd.
    """
    size, stream = compute_bytes(recipe), 4 if recipe.method == "full" else compute_bytes(recipe)
    norms = shape.hidden * (stream + 4 + size) * 2
    attention = (2 * shape.query + 2 * shape.key) * (size + 4)
    wide = 4 * max(shape.inner, shape.chosen * shape.expert_inner) * size
    low = 0 if recipe.method in ("full", "ia3") else 4 * sum(rows for rows, _ in shape.linear.values())
    held = (norms + attention + wide + low) * pack.tokens + 4 * shape.heads * pack.scores
    layer = round(held * LIBRARY_TIMES.get(recipe.method, OTHER_LIBRARY_TIMES))
    # With an adapter on experts, the weights of all experts of a layer are computed and kept for the backward pass.
    made = 0
    if shape.expert_adapter(recipe.target_modules, 1):
        made = 2 * size * shape.experts * shape.expert_weights // max(1, shape.expert_layers)
    if recipe.gradient_checkpointing == "none":
        return shape.layers * layer + shape.expert_layers * made
    return shape.layers * shape.hidden * stream * pack.tokens + 2 * (layer + made)


def _plan_evaluation(subject: Subject, recipe: ResolvedRecipe, context: int, *, host: bool) -> Parts:
    """Return the parts of an evaluation, a separate process without gradients.

    The weights of a full fine-tuning are read into a base, in addition to the base.
    """
    shape, size = subject.shape, compute_bytes(recipe)
    counted_recipe = recipe.model_copy(update={"method": "lora"}) if recipe.method == "full" else recipe
    weights, _ = _count_weight_bytes(subject, counted_recipe, host=host)
    weights += _count_derived_bytes(subject.packed, recipe, shape, host=host)
    own = size * shape.parameters if recipe.method == "full" else 4 * count_trainable(shape, recipe)
    tokens = max(PACK_TOKENS, subject.lengths.longest)
    wide = tokens * (3 * shape.inner + 6 * shape.hidden) * size
    # Keys and values of a pass, from which the search for a label continues.
    held = 2 * shape.layers * shape.key * tokens * size
    return Parts(
        context=context,
        weights=weights,
        adapter=2 * own,
        activations=wide
        + held
        + 4 * 3 * shape.heads * min(SCORE_BLOCK, subject.lengths.longest) * subject.lengths.longest,
        # Logits in the compute dtype, and twice in float32.
        logits=HEAD_ROWS * shape.words * (size + 8),
        workspace=_count_workspace_bytes(shape, recipe, 1),
    )


def _count_derived_bytes(packed: GptqForm | None, recipe: ResolvedRecipe, shape: DecoderShape, *, host: bool) -> int:
    """Return the bytes of weights that an evaluation makes from quantised ones.

    They are dequantised weights that are kept (`ml/layers/decoder.py`) and, for GPTQ on the CPU in bfloat16, weights
    for products with few rows (`ml/quantised/linear.py`).
    """
    size = compute_bytes(recipe)
    made = size * shape.linear_weights if is_quick(recipe, shape) and recipe.quantisation != "none" else 0
    few = 0 if packed is None or not host or size != 2 else sum(packed.count_bytes(shape))
    return (made if made <= KEPT_BYTES else 0) + few


def stored_bytes(facts: Any) -> int:
    """Return the bytes of a weight in the base's files, by the facts of its entry; 4 where they do not say."""
    return 2 if facts.get("dtype") in ("bfloat16", "float16") else 4
