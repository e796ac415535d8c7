"""Plans: values that are counted by hand, monotonic values, and messages about runs that do not fit."""

from __future__ import annotations

import time
from typing import Any

import pytest

from appliance.domain.planning.footprint import (
    DEQUANTISING,
    Subject,
    count_trainable,
    plan_memory,
)
from appliance.domain.planning.pace import count_operations, pace_of_machine, validation_seconds
from appliance.domain.planning.packs import PACK_TOKENS, draw_packs
from appliance.domain.planning.plan import check_fits, format_seconds, make_plan, plan_disk, read_subject
from appliance.domain.planning.shape import (
    DecoderShape,
    GptqForm,
    Lengths,
    Machine,
    MachineCalibration,
    profile_lengths,
    read_packed,
)
from appliance.domain.recipe.methods import METHODS
from appliance.domain.recipe.parsing import parse_recipe
from appliance.domain.recipe.recipe import Recipe, ResolutionFacts, ResolvedRecipe, resolve_recipe
from appliance.errors import BadInput, Conflict

SHAPE = DecoderShape(
    layers=30,
    hidden=576,
    inner=1536,
    heads=9,
    key_heads=3,
    head_size=64,
    words=49_152,
    tied=True,
    parameters=134_515_008,
)
LENGTHS = Lengths(quantiles=tuple(range(16, 145, 4)), shared=8, trained=6)
SUBJECT = Subject(SHAPE, 2, LENGTHS, 800, 200)
FACTS = ResolutionFacts(train_rows=800, max_tokens=144, context_length=8192, device="cpu", bfloat16=True)
MACHINE = Machine(
    host="a machine", device="cpu", threads=2, bfloat16=True, memory_bytes=16 * 10**9, disk_free_bytes=50 * 10**9
)
WRITTEN = {"name": "clauses", "base": "smollm2", "dataset": "clauses@1"}
FULL = {"method": "full", "purpose": "baseline"}


def resolved(**written: Any) -> ResolvedRecipe:
    return resolve_recipe(parse_recipe(WRITTEN | written), FACTS)


def test_the_weights_of_an_adapter_are_counted_as_they_lie_in_its_file() -> None:
    """Rank 16 over all linear layers of SmolLM2-135M: 19,537,920 bytes of float32 in the sealed file."""
    assert count_trainable(SHAPE, resolved(rank=16)) == 4_884_480
    assert count_trainable(SHAPE, resolved(rank=16, target_modules=["q_proj"])) == 30 * 16 * (576 + 576)
    assert count_trainable(SHAPE, resolved(**FULL)) == SHAPE.parameters
    assert SHAPE.linear_weights == 106_168_320


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"batch_size": 4}, {"batch_size": 8}),
        ({"rank": 8}, {"rank": 64}),
        ({"gradient_checkpointing": "layer"}, {"gradient_checkpointing": "mlp"}),
        ({"gradient_checkpointing": "mlp"}, {"gradient_checkpointing": "none"}),
        ({"compute_dtype": "bfloat16"}, {"compute_dtype": "float32"}),
        ({"optimiser": "adamw-8bit", "rank": 64}, {"optimiser": "adamw", "rank": 64}),
        ({}, FULL),
    ],
)
def test_what_holds_more_is_planned_with_more(less: dict[str, Any], more: dict[str, Any]) -> None:
    assert plan_memory(SUBJECT, resolved(**less)).training_peak < plan_memory(SUBJECT, resolved(**more)).training_peak


def test_a_base_in_gptq_is_planned_as_its_file_and_compared_with_what_trains_on_it() -> None:
    """4 bits, a scale and a zero for 128 inputs, an index for each input; embeddings in the file and in bfloat16."""
    said = {"bits": 4, "group_size": 64, "sym": True, "desc_act": False, "checkpoint_format": "gptq"}
    facts = {"dtype": "float16", "quantisation": "gptq", "gptq": said}
    packed = read_packed(facts)
    assert packed is not None and read_packed({"quantisation": "none"}) is None
    inputs = 4 * 576 + 576 + 576 + 1536
    factors = 106_168_320 // 64
    stored = 106_168_320 // 2 + factors * 2 + factors // 2 + 30 * inputs * 4
    assert packed.count_bytes(SHAPE) == (stored, 8 * factors)
    assert GptqForm(4, None).count_bytes(SHAPE)[1] < packed.count_bytes(SHAPE)[1]
    subject = Subject(SHAPE, 2, LENGTHS, 800, 200, packed)
    gptq = FACTS.model_copy(update={"stored": "gptq"})
    plan = make_plan(parse_recipe(WRITTEN | {"method": "lora"}), gptq, subject, MACHINE)
    others = SHAPE.parameters - SHAPE.linear_weights
    assert plan.memory.load.weights == stored + 8 * factors + 2 * 2 * others + DEQUANTISING
    assert [choice.method for choice in plan.offers[0].choices] == ["lora"]
    assert plan.advised == "lora" and "imported in GPTQ" in plan.reasons[0]
    assert plan.memory.load.weights < plan_memory(SUBJECT, resolved(method="lora")).load.weights
    with pytest.raises(BadInput, match="plan, base: expected one that was imported in GPTQ"):
        plan_memory(SUBJECT, plan.recipe)


def test_a_plan_is_above_what_a_run_took_and_by_less_than_a_quarter() -> None:
    """32 rows of up to 128 tokens on two cores of an AMD EPYC: docs/guides/planning.md."""
    rows = [128 - (number * 7919) % 97 for number in range(32)]
    subject = Subject(SHAPE, 2, profile_lengths(rows, shared=16, trained=6), 32, 32)
    recipe = resolved(epochs=1, rank=16, gradient_checkpointing="none")
    assert 1_389_637_632 < plan_memory(subject, recipe).training_peak < 1.25 * 1_389_637_632
    plain = plan_memory(subject, resolved(compute_dtype="float32")), plan_memory(subject, recipe)
    assert [one.train.workspace > 0 for one in plain] == [False, True], "only bfloat16 is held in another layout"


def test_no_pack_is_larger_than_the_loop_makes_it_and_a_long_row_stands_alone() -> None:
    packs = list(draw_packs(LENGTHS, resolved(batch_size=64), 800))
    assert max(pack.tokens for pack in packs) <= PACK_TOKENS
    long = Lengths(quantiles=(3000,), shared=8, trained=4)
    assert {(pack.tokens, pack.segments) for pack in draw_packs(long, resolved(), 8)} == {(3000, 1)}


@pytest.mark.thorough
def test_what_an_earlier_import_believed_of_a_base_is_planned_at_once() -> None:
    """Nothing is looped over that a base claims; bounds at the import came later."""
    absurd = SUBJECT.__class__(SHAPE.model_copy(update={"layers": 10**9, "hidden": 10**9}), 2, LENGTHS, 800, 200)
    began = time.process_time()
    assert plan_memory(absurd, resolved()).training_peak > 10**18
    facts = FACTS.model_copy(update={"context_length": 10**18})
    assert resolve_recipe(parse_recipe(WRITTEN), facts).max_length == 160
    assert time.process_time() - began < 2


def test_quantiles_stand_for_rows_and_never_for_shorter_ones() -> None:
    lengths = [(number * 37) % 211 + 9 for number in range(500)]
    profile = profile_lengths(lengths, shared=3, trained=2)
    spread = profile.spread(500)
    assert spread[-1] == max(lengths) and len(profile.quantiles) == 33
    assert all(found >= row for found, row in zip(spread, sorted(lengths), strict=True))
    assert sum(spread) < 1.05 * sum(lengths)


def test_a_run_that_does_not_fit_is_refused_with_part_and_figure() -> None:
    small = MACHINE.model_copy(update={"memory_bytes": 10**9})
    with pytest.raises(
        Conflict, match=r"memory: expected at most 1 GB.*got 1\.\d+ GB to .*margin of 10%.*largest part"
    ):
        check_fits(SUBJECT, resolved(), small)
    full_disk = MACHINE.model_copy(update={"disk_free_bytes": 10**8})
    with pytest.raises(Conflict, match=r"disk: expected at most 100 MB, which are free, got .*checkpoints"):
        check_fits(SUBJECT, resolved(), full_disk)
    large = SHAPE.model_copy(update={"parameters": 7 * 10**9})
    with pytest.raises(Conflict, match=r"training checkpoint: expected at most 2\.15 GB, got 84 GB"):
        check_fits(Subject(large, 2, LENGTHS, 800, 200), resolved(**FULL), MACHINE)
    check_fits(SUBJECT, resolved(), MACHINE)


@pytest.mark.thorough
def test_a_private_run_is_planned_row_by_row_and_beside_methods_that_can_be_private() -> None:
    written = parse_recipe(WRITTEN | {"privacy": {"epsilon": 8}})
    made, plain = make_plan(written, FACTS, SUBJECT, MACHINE), make_plan(parse_recipe(WRITTEN), FACTS, SUBJECT, MACHINE)
    assert {pack.segments for pack in draw_packs(LENGTHS, made.recipe, 800)} == {1}
    assert made.steps == plain.steps and made.duration.likely > plain.duration.likely
    assert made.memory.train.gradients == 7 * plain.memory.train.gradients
    assert {choice.method for offer in made.offers for choice in offer.choices} == {"qlora", "lora"}
    assert made.advised in ("qlora", "lora") and "left out" in made.reasons[0]


def test_each_process_on_the_cpu_counts_its_own_memory_and_one_writes_the_checkpoint() -> None:
    one, recipe = plan_memory(SUBJECT, resolved()), resolved().model_copy(update={"processes": 2})
    two = plan_memory(SUBJECT, recipe)
    assert two.load.total == 2 * one.load.total
    assert (two.train.weights, two.train.context) == (2 * one.train.weights, 2 * one.train.context)
    # A process has half of a step's rows, so its packs may be smaller.
    assert one.train.total < two.train.total <= 2 * one.train.total
    assert two.save.checkpoint >= one.save.checkpoint > 0
    assert two.evaluate == one.evaluate
    card = plan_memory(SUBJECT, recipe.model_copy(update={"device": "cuda"}))
    assert card.load == plan_memory(SUBJECT, resolved().model_copy(update={"device": "cuda"})).load


def test_disk_is_what_the_recipes_checkpoints_and_steps_add_up_to() -> None:
    recipe = resolved(epochs=1, save_steps=50)
    disk = plan_disk(SUBJECT, recipe)
    assert disk.checkpoints == 2 * (12 * 4_884_480 + (1 << 20))
    assert disk.adapter == 4 * 4_884_480
    assert disk.total == disk.checkpoints + disk.adapter + disk.record + disk.staging


def test_a_calibration_counts_for_its_own_machine_and_method_and_is_near_for_others() -> None:
    measured = MachineCalibration(
        host="a machine",
        base="smollm2",
        method="qlora",
        quantisation="nf4-double",
        compute_dtype="bfloat16",
        pack_s=0.2,
        operations_a_second=2e11,
        load_s=3.0,
        peak_bytes=10**9,
        memory_bytes=16 * 10**9,
        machine={"device": "cpu"},
        time="2026-11-24T12:00:00.000Z",
    )
    here = MACHINE.model_copy(update={"calibrations": (measured,)})
    elsewhere = here.model_copy(update={"host": "another"})
    assert pace_of_machine(here, resolved(), SHAPE).measured
    assert not pace_of_machine(here, resolved(method="lora"), SHAPE).measured
    assert pace_of_machine(here, resolved(method="lora"), SHAPE).operations_a_second == 2e11
    assert pace_of_machine(elsewhere, resolved(), SHAPE) == pace_of_machine(MACHINE, resolved(), SHAPE)


def test_each_reading_of_the_validation_loss_is_a_pass_over_the_validation_rows() -> None:
    """80 of 800 rows, after 40, 80 and 90 steps. It goes through the library's modules, as all of full fine-tuning."""
    written = {"validation": "0.1", "eval_steps": 40, "epochs": 1}
    quick, full = resolved(**written), resolved(**written, **FULL)
    preferring = quick.model_copy(update={"beta": "0.1"})
    for recipe, times in ((quick, 1 / 0.25), (full, 1), (preferring, 2 / 0.25), (resolved(), 0)):
        pace = pace_of_machine(MACHINE, recipe, SHAPE)
        operations = times * 3 * 80 * LENGTHS.mean * 2 * SHAPE.passed_weights
        found = validation_seconds(SUBJECT, recipe, pace)
        assert found == pytest.approx(operations / pace.operations_a_second)


@pytest.mark.thorough
def test_a_run_that_validates_is_not_planned_as_quicker_because_it_trains_on_fewer_rows() -> None:
    plain, few, often = (
        make_plan(parse_recipe(WRITTEN | written), FACTS, SUBJECT, MACHINE).duration.likely
        for written in ({}, {"validation": "0.1", "eval_steps": 100}, {"validation": "0.1", "eval_steps": 10})
    )
    assert plain < often and few < often


def test_every_card_is_marked_as_measured_by_nobody_and_the_advice_can_be_released() -> None:
    plan = make_plan(parse_recipe(WRITTEN), FACTS, SUBJECT, MACHINE)
    assert [offer.machine for offer in plan.offers] == [
        *("this machine", "RTX 3060", "RTX 3090", "RTX 4090", "L40S", "A100", "H100", "H200")
    ]
    assert not any(offer.measured for offer in plan.offers)
    assert all([choice.method for choice in offer.choices] == ["qlora", "lora", "full"] for offer in plan.offers)
    advised = next(choice for choice in plan.offers[0].choices if choice.method == plan.advised)
    assert advised.servable and advised.fits
    assert [reason.partition(":")[0] for reason in plan.reasons] == ["Quality", "Cost", "Memory", "Latency"]


def test_an_import_from_before_plans_is_named() -> None:
    with pytest.raises(BadInput, match=r"base smollm2: expected the measures that a plan needs.*import it again"):
        read_subject("smollm2", "clauses@1", {"parameters": 1}, {})


@pytest.mark.parametrize(
    ("value", "said"),
    [(5, "5 seconds"), (89, "89 seconds"), (400, "6.7 minutes"), (7000, "1.9 hours"), (4e5, "4.6 days")],
)
def test_times_are_said_with_as_many_figures_as_they_deserve(value: float, said: str) -> None:
    assert format_seconds(value) == said


@pytest.mark.thorough
def test_a_plan_says_when_a_base_goes_through_the_librarys_modules() -> None:
    """And plans more time and memory for it, whose experts are not quantised."""
    shape = SHAPE.model_copy(
        update={
            "library": True,
            "linear_total": SHAPE.linear_weights,
            "experts": 8,
            "chosen": 2,
            "expert_inner": 256,
            "expert_layers": 30,
        }
    )
    assert (shape.linear_weights, shape.expert_weights) == (SHAPE.linear_weights, 30 * 3 * 576 * 256)
    table, library = (
        make_plan(parse_recipe(WRITTEN), FACTS, Subject(one, 2, LENGTHS, 800, 200), MACHINE) for one in (SHAPE, shape)
    )
    assert table.notes == () and "without packing" in library.notes[0]
    near = make_plan(parse_recipe(WRITTEN), FACTS, Subject(SHAPE, 2, LENGTHS, 800, 200, None, 60), MACHINE)
    assert near.notes[0].startswith("60 of 200 held-out rows are nearly the same as a training row")
    assert library.duration.likely > 2 * table.duration.likely
    assert library.memory.train.activations > table.memory.train.activations
    experts = resolved(target_modules=["gate_proj", "up_proj"], purpose="baseline")
    plain = resolved(target_modules=["q_proj"], purpose="baseline")
    adapted, other = (plan_memory(Subject(shape, 2, LENGTHS, 800, 200), one) for one in (experts, plain))
    stack = 8 * shape.expert_weights
    assert adapted.train.activations > other.train.activations + 2 * stack


def test_preferences_take_the_pass_of_their_reference_and_no_second_model() -> None:
    plain = resolved(method="qlora")
    preferring = plain.model_copy(update={"beta": "0.1"})
    pack = next(draw_packs(LENGTHS, plain, 800))
    forward = 2.0 * SHAPE.passed_weights * pack.tokens
    assert count_operations(SHAPE, preferring, pack) - count_operations(SHAPE, plain, pack) == pytest.approx(forward)
    assert plan_memory(SUBJECT, preferring) == plan_memory(SUBJECT, plain)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("stored", "preferences", "private"),
    [
        ("none", False, False),
        ("none", True, False),
        ("gptq", False, False),
        ("gptq", True, False),
        ("none", False, True),
    ],
)
def test_each_recipe_that_can_be_trained_can_be_planned(stored: str, preferences: bool, private: bool) -> None:
    """The comparison with other methods refuses no recipe that is right itself, and it compares only what fits."""
    facts = FACTS.model_copy(update={"stored": stored, "preferences": preferences, "train_rows": 40})
    written = WRITTEN | {"purpose": "baseline"} | ({"privacy": {"noise": 1}} if private else {})
    subject = Subject(SHAPE, 2, LENGTHS, 40, 10, GptqForm(4, 64) if stored == "gptq" else None)
    recipes = {method: parse_recipe(written | {"method": method}) for method in METHODS}
    trained = {method for method, recipe in recipes.items() if _is_trainable(recipe, facts)}
    assert trained - {"full"}
    for method in trained:
        plan = make_plan(recipes[method], facts, subject, MACHINE)
        assert {choice.method for choice in plan.offers[0].choices} == {method} | ({"qlora", "lora", "full"} & trained)
        assert plan.advised in ("qlora", "lora")


def _is_trainable(recipe: Recipe, facts: ResolutionFacts) -> bool:
    try:
        resolve_recipe(recipe, facts)
    except BadInput:
        return False
    return True
