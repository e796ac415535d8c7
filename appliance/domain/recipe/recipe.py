"""The recipe an author writes, and the resolved recipe that an operator signs.

An author may leave a value `auto`. Resolution is a pure function of the recipe and the facts about base, dataset and
machine, so that the signer can resolve it again and compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal as Number
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from appliance.domain.core.names import Decimal, Identifier, RunId, Value, VersionedName
from appliance.domain.recipe.methods import (
    CUDA_OPTIMISERS,
    METHODS,
    RATE_RATIO,
    STARTED,
    Method,
    MethodName,
    OptimiserName,
    Quantisation,
    choose_quantisation,
    is_servable,
    list_servable,
    misfits_base,
)
from appliance.domain.recipe.preferences import BETA, lower_rate, misfits_rows
from appliance.domain.recipe.privacy import ResolvedPrivacy, Written, misfits_privacy, resolve_privacy
from appliance.domain.recipe.processes import Processes, misfits_machine
from appliance.errors import refuse

LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EXPERT_ROLES = ("gate_proj", "up_proj", "down_proj")
"""Of these, the ones that a layer's experts play where a base has some."""
ON_EXPERTS = ("qlora", "lora", "rslora", "lora-plus")
"""Methods whose adapters peft puts on experts."""

SHORT_TOKENS = 512
"""Up to this length the activations of a batch cost less than computing them twice (measured on the 135M model)."""

CHECKPOINTS = 8
"""So many training checkpoints a run writes when its author left it to the appliance."""
MOST_CHECKPOINTS = 64
"""A run writes no more than these: each is as large as three adapters, and is kept while it can be replayed."""
READINGS = 16
"""So often a run reads its validation loss when its author left it to the appliance."""
MOST_READINGS = 256
"""A run makes no more: each is in the entry that ends it."""
FEWEST_STEPS = 10
"""Between two training checkpoints, unless the author says otherwise: a stop then costs less than starting a worker."""

Auto = Literal["auto"]
Rank = Annotated[int, Field(ge=1, le=512)]
Alpha = Annotated[int, Field(ge=1, le=4096)]
RankOrNone = Annotated[int, Field(ge=0, le=512, description="0 for a method without one")]
AlphaOrNone = Annotated[int, Field(ge=0, le=4096, description="0 for a method without one")]
Count = Annotated[int, Field(ge=1, le=4096)]
Length = Annotated[int, Field(ge=8, le=1_048_576)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Steps = Annotated[int, Field(ge=1, le=1_000_000)]
Again = Literal["none", "mlp", "layer"]
"""What of a layer is computed again in the backward pass instead of kept: nothing, its wide half, or all of it."""
Patience = Annotated[int, Field(ge=0, le=MOST_READINGS)]
Modules = Annotated[tuple[str, ...], Field(min_length=1)]


class Recipe(Value):
    """What `recipe.yaml` may say. Fractions are text or YAML numbers; everything but the first three has a default."""

    name: Identifier = Field(description="what the adapter is called; each sealed one counts its version up")
    base: Identifier = Field(description="the imported base that it is trained on")
    dataset: VersionedName = Field(description="the imported dataset that it is trained with, NAME@VERSION")
    method: MethodName = Field("qlora", description="how the adapter is begun and trained; docs/training.md compares")
    quantisation: Quantisation | Auto = Field("auto", description="what the base is held as; auto: the method's first")
    purpose: Literal["release", "baseline"] = Field("release", description="to answer for units, or to compare with")
    baseline: RunId | None = Field(None, description="the sealed run whose quality and cost this one is compared with")
    rank: Rank | Auto = Field("auto", description="rank of the low-rank matrices: more learns more and costs more")
    alpha: Alpha | Auto = Field("auto", description="scale of the adapter; auto: twice the rank, so that it is 2")
    dropout: Decimal | Auto = Field("auto", description="share of inputs left out while training, below 1; auto: 0")
    target_modules: Modules | Auto = Field("auto", description=f"layers that are trained: {', '.join(LINEAR_LAYERS)}")
    optimiser: OptimiserName = Field("adamw", description="paged-adamw-8bit needs CUDA")
    learning_rate: Decimal | Auto = Field("auto", description="step size, above 0; auto: the method's own")
    rate_ratio: Decimal | Auto = Field("auto", description="lora-plus only: how much faster B learns than A")
    beta: Decimal | Auto = Field(
        "auto", description="preferences only: how closely DPO holds the adapter to its base; auto: 0.1"
    )
    epochs: Count | Auto = Field("auto", description="passes over the training rows; auto: about 700 rows in all")
    batch_size: Count | Auto = Field("auto", description="rows that are computed at once; auto: 8")
    accumulation: Count | Auto = Field("auto", description="batches for each optimiser step; auto: 1")
    max_length: Length | Auto = Field("auto", description="most tokens of a row; auto: as long as the longest")
    warmup_ratio: Decimal | Auto = Field("auto", description="share of the steps while the rate rises; auto: 0.1")
    weight_decay: Decimal | Auto = Field("auto", description="AdamW's weight decay; auto: 0")
    max_grad_norm: Decimal | Auto = Field(
        "auto", description="gradients are clipped to this norm, above 0; auto: 1, with privacy 0"
    )
    gradient_checkpointing: Again | Auto = Field(
        "auto", description="what is computed again to save memory; auto: mlp for rows of more than 512 tokens"
    )
    checkpoint_every: Steps | Auto = Field(
        "auto", description="steps between two training checkpoints; auto: about 8 of them in a run"
    )
    early_stopping: Patience = Field(
        0, description="stop after so many validation losses without a lower one; 0: never"
    )
    validation: Decimal | Auto = Field(
        "auto",
        description="share of the training rows to validate with, at most 0.9; auto: 0.1 where the run validates",
    )
    validate_every: Steps | Auto = Field("auto", description="steps between two validation losses")
    seed: Seed = Field(1, description="fixes the order of the rows and the adapter's beginning")
    device: Literal["cpu", "cuda", "auto"] = Field(
        "auto", description="where it is trained; auto: what this machine has"
    )
    compute_dtype: Literal["bfloat16", "float32", "auto"] = Field(
        "auto", description="what it is computed in; auto: bfloat16 where the machine multiplies it in hardware"
    )
    processes: Processes = Field(
        1, description="ranks that share each step: on CUDA at most the cards, on the CPU a divisor of the threads"
    )
    privacy: Written = None


class ResolvedRecipe(Value):
    """Every value that training uses; nothing is left to a library's default."""

    name: Identifier
    base: Identifier
    dataset: VersionedName
    method: MethodName
    quantisation: Quantisation
    purpose: Literal["release", "baseline"]
    baseline: RunId | None = Field(description="the run whose quality and cost this one is compared with")
    rank: RankOrNone
    alpha: AlphaOrNone
    dropout: Decimal
    target_modules: tuple[str, ...] = Field(description="empty where every weight of the base is trained")
    optimiser: OptimiserName
    learning_rate: Decimal
    rate_ratio: Decimal = Field(description="how much faster B learns than A: LoRA+, else 1.0")
    beta: Decimal = Field(description="how closely DPO holds the adapter to its base: preferences, else 0.0")
    epochs: Count
    batch_size: Count
    accumulation: Count
    max_length: Length
    warmup_ratio: Decimal
    weight_decay: Decimal
    max_grad_norm: Decimal
    gradient_checkpointing: Again
    checkpoint_every: Steps = Field(description="steps between two training checkpoints; the last step has one too")
    early_stopping: Patience = Field(description="stop after so many validation losses without a lower one; 0: never")
    validation: Decimal = Field(description="the share of the training rows to validate with instead")
    validate_every: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        description="steps between two validation losses; the last step has one too; 0 without validation rows"
    )
    seed: Seed
    device: Literal["cpu", "cuda"]
    compute_dtype: Literal["bfloat16", "float32"]
    processes: Processes = Field(description="ranks that share each step; another number gives other bits")
    privacy: ResolvedPrivacy | None = Field(description="noise that hides each training row; null: none")


class Facts(Value):
    """What resolution may know: measured at import, or of the machine."""

    train_rows: int = Field(ge=1)
    max_tokens: int = Field(ge=1, description="tokens of the longest rendered row, answer included")
    context_length: int = Field(ge=1)
    device: Literal["cpu", "cuda"]
    bfloat16: bool = Field(description="whether the machine multiplies bf16 in hardware")
    threads: int = Field(1, ge=1, description="of the machine, for a run on its CPU")
    cards: int = Field(1, ge=1, description="that a worker may see, for a run on CUDA")
    stored: Literal["none", "gptq"] = Field("none", description="what the base was imported as")
    roles: Annotated[Modules, BeforeValidator(tuple)] = Field(
        LINEAR_LAYERS, description="of linear layers, those that the base has"
    )
    experts: bool = Field(False, description="whether gate_proj, up_proj and down_proj are of a layer's experts")
    preferences: bool = Field(False, description="whether the rows are preferences, which are trained by DPO")


def resolve_recipe(recipe: Recipe, facts: Facts) -> ResolvedRecipe:
    """Every `auto` given its value; BadInput for what cannot be trained or served on this base and machine."""
    values, method = recipe.model_dump(), METHODS[recipe.method]
    max_length = min(facts.context_length, _round_up(facts.max_tokens, 32))
    defaults = {
        **_of_method(recipe, method, facts),
        "quantisation": choose_quantisation(recipe.method, facts.stored),
        "epochs": _epochs(facts.train_rows),
        "batch_size": 8,
        "accumulation": 1,
        "max_length": max_length,
        "warmup_ratio": "0.1",
        "weight_decay": "0.0",
        "max_grad_norm": "0.0" if recipe.privacy else "1.0",
        "gradient_checkpointing": "mlp" if max_length > SHORT_TOKENS else "none",
        "validation": "0.1" if recipe.early_stopping or recipe.validate_every != "auto" else "0.0",
        "device": facts.device,
        "compute_dtype": "bfloat16" if facts.bfloat16 else "float32",
    }
    for key, value in defaults.items():
        if values[key] == "auto":
            values[key] = value
    steps = count_steps(facts.train_rows, values["epochs"], values["batch_size"] * values["accumulation"])
    if values["checkpoint_every"] == "auto":
        # A training checkpoint of every weight of a base is as large as three bases: one, at the end.
        values["checkpoint_every"] = max(FEWEST_STEPS, -(-steps // (CHECKPOINTS if method.chooses_modules else 1)))
    if values["validate_every"] == "auto":
        values["validate_every"] = 0 if values["validation"] == "0.0" else -(-steps // READINGS)
    if recipe.privacy:
        expected = values["batch_size"] * values["accumulation"]
        values["privacy"] = resolve_privacy(values["privacy"], facts.train_rows, expected, steps)
    resolved = ResolvedRecipe.model_validate(values)
    of_rows = (facts.context_length, facts.max_tokens, facts.train_rows)
    problems = untrainable(resolved, *of_rows, facts.stored, facts.roles, facts.experts, preferences=facts.preferences)
    if resolved.device == "cuda" and facts.device != "cuda":
        problems.append("recipe, device: expected cpu, since this machine has no CUDA device, got cuda")
    problems += misfits_machine(resolved.processes, resolved.device, facts.threads, facts.cards)
    refuse("recipe", problems)
    return resolved


def _of_method(recipe: Recipe, method: Method, facts: Facts) -> dict[str, Any]:
    """What the method decides where the author left it open."""
    rank = (16 if recipe.rank == "auto" else recipe.rank) if method.low_rank else 0
    return {
        "rank": rank,
        # The scale is alpha / rank, or alpha / sqrt(rank): 2 in both cases, whatever the rank.
        "alpha": round(2 * rank**0.5) if recipe.method == "rslora" else 2 * rank,
        "dropout": "0.0",
        "target_modules": _choose_modules(facts) if method.chooses_modules else (),
        "learning_rate": lower_rate(method.learning_rate) if facts.preferences else method.learning_rate,
        "beta": BETA if facts.preferences else "0.0",
        "rate_ratio": RATE_RATIO if recipe.method == "lora-plus" else "1.0",
    }


def _choose_modules(facts: Facts) -> tuple[str, ...]:
    """All linear layers of the base that can be served: an adapter on experts cannot."""
    return tuple(role for role in facts.roles if not (facts.experts and role in EXPERT_ROLES))


def untrainable(
    recipe: ResolvedRecipe,
    context_length: object,
    max_tokens: object,
    train_rows: object,
    stored: object,
    roles: Sequence[str] = LINEAR_LAYERS,
    experts: bool = False,
    *,
    preferences: bool = False,
) -> list[str]:
    """What is wrong with a resolved recipe for this base and dataset, each as one sentence. Facts of an old import
    that has none are passed over; `stored` is `gptq` for a base that was imported so."""
    problems = [
        *_misfits(recipe),
        *misfits_base(recipe.method, recipe.quantisation, stored),
        *_unservable(recipe),
        *_misplaced(recipe, roles, experts),
        *misfits_rows(recipe.method, recipe.beta, recipe.dataset, preferences=preferences),
    ]
    if isinstance(context_length, int) and recipe.max_length > context_length:
        problems.append(
            f"recipe, max_length: expected at most the base's context of {context_length} tokens, "
            f"got {recipe.max_length}"
        )
    if isinstance(max_tokens, int) and max_tokens > recipe.max_length:
        problems.append(
            f"recipe, max_length: expected at least {max_tokens} tokens, the longest row of {recipe.dataset}, "
            f"got {recipe.max_length}"
        )
    steps = 0
    if isinstance(train_rows, int):
        steps = count_steps(train_rows, recipe.epochs, recipe.batch_size * recipe.accumulation)
        problems += _misplanned(recipe, train_rows)
    if recipe.privacy is not None:
        values = recipe.model_dump()
        problems += misfits_privacy(recipe.privacy, values, train_rows, steps, preferences=preferences)
    return problems


def _misfits(recipe: ResolvedRecipe) -> list[str]:
    """Values that the method has no use for, or that its optimiser and device have none for."""
    method, name, problems = METHODS[recipe.method], recipe.method, []
    if recipe.quantisation not in method.quantisations:
        known = " or ".join(method.quantisations)
        problems.append(f"recipe, quantisation: expected {known} for {name}, got {recipe.quantisation}")
    for key, value in (("rank", recipe.rank), ("alpha", recipe.alpha)):
        if bool(value) != method.low_rank:
            expected = "at least 1" if method.low_rank else f"0 or auto, since {name} has none"
            problems.append(f"recipe, {key}: expected {expected}, got {value}")
    if Number(recipe.dropout) and not method.low_rank:
        problems.append(f"recipe, dropout: expected 0.0 or auto, since {name} has none, got {recipe.dropout}")
    if Number(recipe.dropout) >= 1:
        problems.append(f"recipe, dropout: expected a fraction below 1, got {recipe.dropout}")
    if name != "lora-plus" and Number(recipe.rate_ratio) != 1:
        problems.append(f"recipe, rate_ratio: expected 1.0 or auto for {name}, got {recipe.rate_ratio}")
    if name in STARTED and Number(recipe.weight_decay):
        problems.append(
            f"recipe, weight_decay: expected 0.0 for {name}, whose beginning is held still, got {recipe.weight_decay}"
        )
    for key in ("learning_rate", "rate_ratio"):
        if not Number(getattr(recipe, key)):
            problems.append(f"recipe, {key}: expected a number above 0, since nothing would move, got 0.0")
    if recipe.optimiser in CUDA_OPTIMISERS and recipe.device != "cuda":
        problems.append(
            f"recipe, optimiser: expected adamw or adamw-8bit, since bitsandbytes pages only on a CUDA device, "
            f"got {recipe.optimiser} on {recipe.device}"
        )
    return [*problems, *_unclipped(recipe), *_misaimed(recipe, method)]


def _unclipped(recipe: ResolvedRecipe) -> list[str]:
    """A norm of 0 is no clipping in a private run alone, where the gradient of each row is clipped."""
    if recipe.privacy is not None or Number(recipe.max_grad_norm):
        return []
    return [
        "recipe, max_grad_norm: expected a number above 0, since every gradient would be clipped to nothing, got 0.0; "
        "a large one such as 1000000.0 clips none"
    ]


def _misaimed(recipe: ResolvedRecipe, method: Method) -> list[str]:
    if not method.chooses_modules:
        if recipe.target_modules:
            return [
                f"recipe, target_modules: expected none or auto, since {recipe.method} trains every weight, "
                f"got {', '.join(recipe.target_modules)}"
            ]
        return []
    unknown = sorted(set(recipe.target_modules) - set(LINEAR_LAYERS))
    if unknown or not recipe.target_modules:
        return [
            f"recipe, target_modules: expected some of {', '.join(LINEAR_LAYERS)}, which are the ones that can be "
            f"served, got {', '.join(unknown) or 'none'}"
        ]
    return []


def _unservable(recipe: ResolvedRecipe) -> list[str]:
    """A unit is served only plain LoRA over an unchanged base; everything else is for comparison."""
    if recipe.purpose != "release" or is_servable(recipe.method, recipe.quantisation):
        return []
    return [
        f"recipe, purpose: expected baseline, since only these can be released: {list_servable()}; "
        f"got release of {recipe.method} on {recipe.quantisation}"
    ]


def _misplaced(recipe: ResolvedRecipe, roles: Sequence[str], experts: bool) -> list[str]:
    """What of a recipe's layers this base has not, and what an adapter on its experts cannot be."""
    named, method, problems = recipe.target_modules, METHODS[recipe.method], list[str]()
    if missing := [role for role in named if role in LINEAR_LAYERS and role not in roles]:
        problems.append(
            f"recipe, target_modules: expected some of {', '.join(roles)}, which {recipe.base} has, "
            f"got {', '.join(missing)}"
        )
    if not (experts and method.chooses_modules and set(named) & set(EXPERT_ROLES)):
        return problems
    served = [role for role in roles if role not in EXPERT_ROLES]
    if recipe.purpose == "release":
        problems.append(
            f"recipe, target_modules: expected some of {', '.join(served)} for a release, since an adapter on the "
            f"experts of {recipe.base} cannot be served, got {', '.join(named)}"
        )
    if not method.plain or recipe.method in STARTED:
        problems.append(f"recipe, method: expected one of {', '.join(ON_EXPERTS)} on experts, got {recipe.method}")
    if Number(recipe.dropout):
        problems.append(f"recipe, dropout: expected 0.0 on experts, got {recipe.dropout}")
    if ("gate_proj" in named) != ("up_proj" in named):
        problems.append(
            "recipe, target_modules: expected gate_proj and up_proj together, which are one parameter of the experts, "
            f"got {', '.join(named)}"
        )
    return problems


def _misplanned(recipe: ResolvedRecipe, rows: int) -> list[str]:
    steps = count_steps(rows, recipe.epochs, recipe.batch_size * recipe.accumulation)
    problems = problems_of_steps(recipe, rows)
    warmup = count_warmup(recipe.warmup_ratio, steps)
    if warmup >= steps:
        problems.append(
            f"recipe, warmup_ratio: expected a warm-up shorter than the run's {steps} steps, got {warmup} steps "
            f"({recipe.warmup_ratio})"
        )
    return problems


def count_steps(rows: int, epochs: int, rows_a_step: int) -> int:
    """Optimiser steps of a run: every epoch's last step takes what is left."""
    return epochs * -(-rows // rows_a_step)


def count_warmup(ratio: str, steps: int) -> int:
    """Of these, the steps in which the learning rate rises."""
    return round(float(ratio) * steps)


def problems_of_steps(recipe: ResolvedRecipe, rows: int) -> list[str]:
    """What is wrong with how often the run writes a training checkpoint and reads its validation loss."""
    steps = count_steps(rows, recipe.epochs, recipe.batch_size * recipe.accumulation)
    problems = []
    for name, every, most, of in (
        ("checkpoint_every", recipe.checkpoint_every, MOST_CHECKPOINTS, "training checkpoints"),
        ("validate_every", recipe.validate_every, MOST_READINGS, "validation losses"),
    ):
        fewest = -(-steps // most)
        if 0 < every < fewest:
            problems.append(
                f"recipe, {name}: expected at least {fewest}, for at most {most} {of} in {steps} steps, got {every}"
            )
    validates = Number(recipe.validation) > 0
    if Number(recipe.validation) > Number("0.9"):
        problems.append(f"recipe, validation: expected at most 0.9, got {recipe.validation}")
    if validates != (recipe.validate_every > 0) or (recipe.early_stopping and not validates):
        problems.append(
            "recipe, validation: expected a share above 0.0 exactly where the run validates or stops early, "
            f"got {recipe.validation} with validate_every {recipe.validate_every} and "
            f"early_stopping {recipe.early_stopping}"
        )
    return problems


def _epochs(rows: int) -> int:
    """Enough passes that about seven hundred rows are seen in all, between 1 and 5."""
    return max(1, min(5, round(700 / rows)))


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
