"""The recipe that an author writes, and the resolved recipe that an operator signs.

An author may leave a value `auto`. Resolution is a pure function of the recipe and of facts about base, dataset and
machine, so that the signer can repeat it and compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal as Number
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from appliance.domain.core.names import Decimal, Identifier, RunId, Token, Value, VersionedName
from appliance.domain.recipe.methods import (
    BETA,
    CUDA_OPTIMISERS,
    LORAPLUS_LR_RATIO,
    METHODS,
    STARTED,
    Method,
    MethodName,
    OptimiserName,
    Processes,
    Quantisation,
    choose_quantisation,
    is_servable,
    list_base_problems,
    list_condition_problems,
    list_conditions,
    list_machine_problems,
    list_row_problems,
    list_servable,
    lower_rate,
)
from appliance.domain.recipe.privacy import ResolvedPrivacy, WrittenPrivacy, list_privacy_problems, resolve_privacy
from appliance.errors import refuse

LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Roles of the linear layers of a decoder layer, as PEFT names them."""
EXPERT_ROLES = ("gate_proj", "up_proj", "down_proj")
"""The roles that the experts of a layer have, in a base with experts."""
ON_EXPERTS = ("qlora", "lora", "rslora", "lora-plus")
"""Methods whose adapters PEFT can put on experts."""

SHORT_TOKENS = 512
"""Most tokens of a row up to which activations are kept rather than computed again (measured on the 135M model)."""

CHECKPOINTS = 8
"""Training checkpoints of a run by default."""
MOST_CHECKPOINTS = 64
"""Most training checkpoints of a run: each is as large as three adapters, and is kept while the run can be replayed."""
READINGS = 16
"""Validation losses of a run by default."""
MOST_READINGS = 256
"""Most validation losses of a run: all of them are in the entry that ends the run."""
FEWEST_STEPS = 10
"""Least steps between two training checkpoints by default. Losing so few steps costs less than starting a worker."""

Auto = Literal["auto"]
Rank = Annotated[int, Field(ge=1, le=512)]
Alpha = Annotated[int, Field(ge=1, le=4096)]
RankOrNone = Annotated[int, Field(ge=0, le=512, description="0 for a method without one")]
AlphaOrNone = Annotated[int, Field(ge=0, le=4096, description="0 for a method without one")]
Count = Annotated[int, Field(ge=1, le=4096)]
Length = Annotated[int, Field(ge=8, le=1_048_576)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Steps = Annotated[int, Field(ge=1, le=1_000_000)]
Recomputation = Literal["none", "mlp", "layer"]
"""The part of a layer that the backward pass computes again instead of keeping it: nothing, its MLP, or all of it."""
Patience = Annotated[int, Field(ge=0, le=MOST_READINGS)]
Modules = Annotated[tuple[str, ...], Field(min_length=1)]


class Recipe(Value):
    """The contents of `recipe.yaml`. Fractions are text or YAML numbers. Only the first three keys are required."""

    name: Identifier = Field(description="name of the adapter; each sealed run makes its next version")
    base: Identifier = Field(description="name of the imported base model")
    dataset: VersionedName = Field(description="the imported dataset to train with, NAME@VERSION")
    method: MethodName = Field("qlora", description="training method; the page Training of the manual compares them")
    quantisation: Quantisation | Auto = Field(
        "auto", description="form of the base's weights while training; auto: the default of the method"
    )
    purpose: Literal["release", "baseline"] = Field(
        "release", description="release to serve units, or baseline for comparison only"
    )
    baseline: RunId | None = Field(None, description="the sealed run to compare this run's quality and cost with")
    rank: Rank | Auto = Field(
        "auto", description="rank of the low-rank matrices: a higher rank can learn more and costs more; auto: 16"
    )
    alpha: Alpha | Auto = Field(
        "auto", description="LoRA's alpha; auto: twice the rank, which makes the scale of the adapter 2"
    )
    dropout: Decimal | Auto = Field(
        "auto", description="share of the adapter's inputs that are dropped while training, below 1; auto: 0"
    )
    target_modules: Modules | Auto = Field(
        "auto", description=f"layers to train: {', '.join(LINEAR_LAYERS)}; auto: all that can be served"
    )
    optimiser: OptimiserName = Field("adamw", description="optimiser; paged-adamw-8bit needs CUDA")
    learning_rate: Decimal | Auto = Field("auto", description="learning rate, above 0; auto: the default of the method")
    loraplus_lr_ratio: Decimal | Auto = Field(
        "auto", description="lora-plus only: ratio of B's learning rate to A's; auto: 16"
    )
    beta: Decimal | Auto = Field(
        "auto", description="preferences only: DPO's beta, which is higher to stay closer to the base; auto: 0.1"
    )
    epochs: Count | Auto = Field(
        "auto", description="passes over the training rows; auto: 1 to 5, for about 700 rows in all"
    )
    batch_size: Count | Auto = Field("auto", description="most rows of a batch; auto: 8")
    gradient_accumulation_steps: Count | Auto = Field("auto", description="batches of an optimiser step; auto: 1")
    max_length: Length | Auto = Field("auto", description="most tokens of a row; auto: the length of the longest row")
    warmup_ratio: Decimal | Auto = Field(
        "auto", description="share of the steps in which the learning rate rises; auto: 0.1"
    )
    weight_decay: Decimal | Auto = Field("auto", description="AdamW's weight decay; auto: 0")
    max_grad_norm: Decimal | Auto = Field(
        "auto", description="norm that gradients are clipped to, above 0; auto: 1, and 0 with privacy"
    )
    gradient_checkpointing: Recomputation | Auto = Field(
        "auto",
        description="part of a layer to compute again to save memory; auto: mlp if max_length is above 512, else none",
    )
    save_steps: Steps | Auto = Field(
        "auto", description="steps between two training checkpoints; auto: about 8 checkpoints in a run"
    )
    early_stopping: Patience = Field(
        0, description="validation losses without a lower one after which the run stops; 0: it never stops early"
    )
    validation: Decimal | Auto = Field(
        "auto",
        description="share of the training rows to validate with, at most 0.9; auto: 0.1 if the run validates, else 0",
    )
    eval_steps: Steps | Auto = Field(
        "auto", description="steps between two validation losses; auto: about 16 losses in a run, if it validates"
    )
    seed: Seed = Field(1, description="seed of the order of the rows and of the adapter's first weights")
    device: Literal["cpu", "cuda", "auto"] = Field(
        "auto", description="device to train on; auto: cuda where this machine has it, else cpu"
    )
    compute_dtype: Literal["bfloat16", "float32", "auto"] = Field(
        "auto", description="number format to compute in; auto: bfloat16 where the hardware multiplies it, else float32"
    )
    processes: Processes = Field(
        1, description="processes that share each step: on CUDA at most the cards, on the CPU a divisor of the threads"
    )
    privacy: WrittenPrivacy = None


class ResolvedRecipe(Value):
    """A recipe with every value that training uses, so that no default of a library matters."""

    name: Identifier
    base: Identifier
    dataset: VersionedName
    method: MethodName
    quantisation: Quantisation
    purpose: Literal["release", "baseline"]
    baseline: RunId | None = Field(description="the run to compare this run's quality and cost with")
    rank: RankOrNone
    alpha: AlphaOrNone
    dropout: Decimal
    target_modules: tuple[Token, ...] = Field(description="empty where every weight of the base is trained")
    optimiser: OptimiserName
    learning_rate: Decimal
    loraplus_lr_ratio: Decimal = Field(description="LoRA+: ratio of B's learning rate to A's; else 1.0")
    beta: Decimal = Field(description="DPO's beta for preferences, else 0.0")
    epochs: Count
    batch_size: Count
    gradient_accumulation_steps: Count
    max_length: Length
    warmup_ratio: Decimal
    weight_decay: Decimal
    max_grad_norm: Decimal
    gradient_checkpointing: Recomputation
    save_steps: Steps = Field(description="steps between two training checkpoints; the last step has one, too")
    early_stopping: Patience = Field(
        description="validation losses without a lower one after which the run stops; 0: never"
    )
    validation: Decimal = Field(description="share of the training rows that are used to validate instead")
    eval_steps: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        description="steps between two validation losses; the last step has one, too; 0 without validation rows"
    )
    seed: Seed
    device: Literal["cpu", "cuda"]
    compute_dtype: Literal["bfloat16", "float32"]
    processes: Processes = Field(description="processes that share each step; another number gives other bits")
    privacy: ResolvedPrivacy | None = Field(description="differential privacy for each training row; null: none")

    @property
    def rows_a_step(self) -> int:
        """Return the rows of one optimiser step."""
        return count_rows_a_step(self.__dict__)

    def count_steps(self, rows: int) -> int:
        """Return the optimiser steps of a run with this number of training rows."""
        return count_steps(self.__dict__, rows)


def count_rows_a_step(recipe: Mapping[str, Any]) -> int:
    """Return the rows of one optimiser step of a resolved recipe."""
    rows: int = recipe["batch_size"] * recipe["gradient_accumulation_steps"]
    return rows


def count_steps(recipe: Mapping[str, Any], rows: int) -> int:
    """Return the optimiser steps of a run. The last step of each epoch has the remaining rows."""
    steps: int = recipe["epochs"] * -(-rows // count_rows_a_step(recipe))
    return steps


class ResolutionFacts(Value):
    """The facts that resolution uses, measured at import or on the machine."""

    train_rows: int = Field(ge=1)
    max_tokens: int = Field(ge=1, description="tokens of the longest rendered row, with its answer")
    context_length: int = Field(ge=1)
    device: Literal["cpu", "cuda"]
    bfloat16: bool = Field(description="true if the hardware multiplies bf16")
    threads: int = Field(1, ge=1, description="threads of the machine, for a run on its CPU")
    cards: int = Field(1, ge=1, description="cards that a worker may use, for a run on CUDA")
    stored: Literal["none", "gptq"] = Field("none", description="quantisation in which the base was imported")
    roles: Annotated[Modules, BeforeValidator(tuple)] = Field(
        LINEAR_LAYERS, description="roles of the base's linear layers"
    )
    experts: bool = Field(False, description="true if gate_proj, up_proj and down_proj belong to experts")
    preferences: bool = Field(False, description="true if the rows are preferences, which are trained by DPO")


def resolve_recipe(recipe: Recipe, facts: ResolutionFacts) -> ResolvedRecipe:
    """Return the recipe with a value for every `auto`.

    Raises: BadInput where it cannot be trained, or its release cannot be served, on this base and machine.
    """
    values, method = recipe.model_dump(), METHODS[recipe.method]
    max_length = min(facts.context_length, _round_up(facts.max_tokens, 32))
    defaults = {
        **_list_method_defaults(recipe, method, facts),
        "quantisation": choose_quantisation(recipe.method, facts.stored),
        "epochs": _choose_epochs(facts.train_rows),
        "batch_size": 8,
        "gradient_accumulation_steps": 1,
        "max_length": max_length,
        "warmup_ratio": "0.1",
        "weight_decay": "0.0",
        "max_grad_norm": "0.0" if recipe.privacy else "1.0",
        "gradient_checkpointing": "mlp" if max_length > SHORT_TOKENS else "none",
        "validation": "0.1" if recipe.early_stopping or recipe.eval_steps != "auto" else "0.0",
        "device": facts.device,
        "compute_dtype": "bfloat16" if facts.bfloat16 else "float32",
    }
    for key, value in defaults.items():
        if values[key] == "auto":
            values[key] = value
    steps = count_steps(values, facts.train_rows)
    if values["save_steps"] == "auto":
        # A training checkpoint of every weight of a base is as large as three bases: one, at the end.
        values["save_steps"] = max(FEWEST_STEPS, -(-steps // (CHECKPOINTS if method.chooses_modules else 1)))
    if values["eval_steps"] == "auto":
        values["eval_steps"] = 0 if values["validation"] == "0.0" else -(-steps // READINGS)
    if recipe.privacy:
        values["privacy"] = resolve_privacy(values["privacy"], facts.train_rows, count_rows_a_step(values), steps)
    resolved = ResolvedRecipe.model_validate(values)
    of_rows = (facts.context_length, facts.max_tokens, facts.train_rows)
    problems = list_recipe_problems(
        resolved, *of_rows, facts.stored, facts.roles, facts.experts, preferences=facts.preferences
    )
    if resolved.device == "cuda" and facts.device != "cuda":
        problems.append("recipe, device: expected cpu, since this machine has no CUDA device, got cuda")
    problems += list_machine_problems(resolved.processes, resolved.device, facts.threads, facts.cards)
    refuse("recipe", problems)
    return resolved


def _list_method_defaults(recipe: Recipe, method: Method, facts: ResolutionFacts) -> dict[str, Any]:
    """Return the defaults that depend on the method."""
    rank = (16 if recipe.rank == "auto" else recipe.rank) if method.low_rank else 0
    return {
        "rank": rank,
        # The scale is alpha / rank, or alpha / sqrt(rank): 2 in both cases, whatever the rank.
        "alpha": round(2 * rank**0.5) if recipe.method == "rslora" else 2 * rank,
        "dropout": "0.0",
        "target_modules": _choose_modules(facts) if method.chooses_modules else (),
        "learning_rate": lower_rate(method.learning_rate) if facts.preferences else method.learning_rate,
        "beta": BETA if facts.preferences else "0.0",
        "loraplus_lr_ratio": LORAPLUS_LR_RATIO if recipe.method == "lora-plus" else "1.0",
    }


def _choose_modules(facts: ResolutionFacts) -> tuple[str, ...]:
    """Return all linear layers of the base that can be served; an adapter on experts cannot."""
    return tuple(role for role in facts.roles if not (facts.experts and role in EXPERT_ROLES))


def list_recipe_problems(
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
    """Return what is wrong with a resolved recipe for this base and dataset, each as one sentence.

    Facts that an old import does not have are not checked. `stored` is `gptq` for a base that was imported in GPTQ.
    """
    conditions = list_conditions(stored, preferences=preferences, private=recipe.privacy is not None)
    problems = [
        *_list_value_problems(recipe),
        *list_condition_problems(recipe.method, conditions),
        *list_base_problems(recipe.method, recipe.quantisation, stored),
        *_list_release_problems(recipe),
        *_list_layer_problems(recipe, roles, experts),
        *list_row_problems(recipe.beta, recipe.dataset, preferences=preferences),
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
        steps = recipe.count_steps(train_rows)
        problems += _list_step_problems(recipe, train_rows)
    if recipe.privacy is not None:
        values = recipe.model_dump()
        problems += list_privacy_problems(
            recipe.privacy, values, train_rows, steps, recipe.rows_a_step, preferences=preferences
        )
    return problems


def _list_value_problems(recipe: ResolvedRecipe) -> list[str]:
    """Return what is wrong with values that the method, the optimiser or the device does not use."""
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
    if name != "lora-plus" and Number(recipe.loraplus_lr_ratio) != 1:
        problems.append(f"recipe, loraplus_lr_ratio: expected 1.0 or auto for {name}, got {recipe.loraplus_lr_ratio}")
    if name in STARTED and Number(recipe.weight_decay):
        reason = f"for {name}, because its first weights are fixed"
        problems.append(f"recipe, weight_decay: expected 0.0 {reason}, got {recipe.weight_decay}")
    for key in ("learning_rate", "loraplus_lr_ratio"):
        if not Number(getattr(recipe, key)):
            problems.append(f"recipe, {key}: expected a number above 0, because the weights would not change, got 0.0")
    if recipe.optimiser in CUDA_OPTIMISERS and recipe.device != "cuda":
        problems.append(
            f"recipe, optimiser: expected adamw or adamw-8bit, since bitsandbytes pages only on a CUDA device, "
            f"got {recipe.optimiser} on {recipe.device}"
        )
    return [*problems, *_list_clipping_problems(recipe), *_list_target_problems(recipe, method)]


def _list_clipping_problems(recipe: ResolvedRecipe) -> list[str]:
    """Return the reason against a norm of 0, which is allowed in private runs only.

    Private runs clip the gradient of each row instead.
    """
    if recipe.privacy is not None or Number(recipe.max_grad_norm):
        return []
    return [
        "recipe, max_grad_norm: expected a number above 0, since every gradient would be clipped to nothing, got 0.0; "
        "a large one such as 1000000.0 clips none"
    ]


def _list_target_problems(recipe: ResolvedRecipe, method: Method) -> list[str]:
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


def _list_release_problems(recipe: ResolvedRecipe) -> list[str]:
    """Return the reason against a release that cannot be served.

    Units are served only plain LoRA over an unchanged base; all other methods are for comparison.
    """
    if recipe.purpose != "release" or is_servable(recipe.method, recipe.quantisation):
        return []
    return [
        f"recipe, purpose: expected baseline, since only these can be released: {list_servable()}; "
        f"got release of {recipe.method} on {recipe.quantisation}"
    ]


def _list_layer_problems(recipe: ResolvedRecipe, roles: Sequence[str], experts: bool) -> list[str]:
    """Return the reasons against the layers of a recipe.

    They are layers that the base does not have, and adapters on experts that are not supported.
    """
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


def _list_step_problems(recipe: ResolvedRecipe, rows: int) -> list[str]:
    steps = recipe.count_steps(rows)
    problems = problems_of_steps(recipe, rows)
    warmup = count_warmup(recipe.warmup_ratio, steps)
    if warmup >= steps:
        problems.append(
            f"recipe, warmup_ratio: expected a warm-up shorter than the run's {steps} steps, got {warmup} steps "
            f"({recipe.warmup_ratio})"
        )
    return problems


def count_warmup(ratio: str, steps: int) -> int:
    """Return the number of steps in which the learning rate rises."""
    return round(float(ratio) * steps)


def problems_of_steps(recipe: ResolvedRecipe, rows: int) -> list[str]:
    """Return what is wrong with the steps between training checkpoints, and with those between validation losses."""
    steps = recipe.count_steps(rows)
    problems = []
    for name, every, most, what in (
        ("save_steps", recipe.save_steps, MOST_CHECKPOINTS, "training checkpoints"),
        ("eval_steps", recipe.eval_steps, MOST_READINGS, "validation losses"),
    ):
        fewest = -(-steps // most)
        if 0 < every < fewest:
            problems.append(
                f"recipe, {name}: expected at least {fewest}, for at most {most} {what} in {steps} steps, got {every}"
            )
    validates = Number(recipe.validation) > 0
    if Number(recipe.validation) > Number("0.9"):
        problems.append(f"recipe, validation: expected at most 0.9, got {recipe.validation}")
    if validates != (recipe.eval_steps > 0) or (recipe.early_stopping and not validates):
        problems.append(
            "recipe, validation: expected a share above 0.0 exactly where the run validates or stops early, "
            f"got {recipe.validation} with eval_steps {recipe.eval_steps} and "
            f"early_stopping {recipe.early_stopping}"
        )
    return problems


def _choose_epochs(rows: int) -> int:
    """Return the epochs for about seven hundred rows in all, from 1 to 5."""
    return max(1, min(5, round(700 / rows)))


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
