"""Files that a base may not have are refused by name, before anything reads them."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

from appliance.errors import BadInput
from appliance.ml.model.base import load_base
from appliance.ml.model.bounds import check_claims, count_least_parameters
from appliance.ml.model.convert import convert_base
from appliance.ml.model.folder import check_folder
from appliance.ml.quantised.nf4 import NF4_FILE
from scripts.kit.tiny_model import build_base


class _Bomb:
    """What a pickle would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.fixture
def folder(base_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base_folder, tmp_path / "base"))


def _edit(folder: Path, name: str, **members: Any) -> None:
    value = json.loads((folder / name).read_bytes())
    (folder / name).write_text(json.dumps({**value, **members}))


def _link(folder: Path) -> None:
    (folder / "vocab.json").symlink_to("/etc/passwd")


def _link_weights(folder: Path) -> None:
    outside = folder.parent / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)


def _index(folder: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (lambda f: (f / "pytorch_model.bin").write_bytes(b"x"), "pytorch_model.bin: .*a pickle"),
    "pickle-pt": (lambda f: (f / "consolidated.00.PTH").write_bytes(b"x"), "consolidated.00.PTH: .*a pickle"),
    "code": (lambda f: (f / "modeling_evil.py").write_text("x"), "modeling_evil.py: .*remote code"),
    "folder": (lambda f: (f / "merges.txt").mkdir(), "merges.txt: expected a regular file, got a folder"),
    "link": (_link, "vocab.json: expected a regular file, got a symbolic link"),
    "linked-weights": (_link_weights, "model.safetensors: expected a regular file, got a symbolic link"),
    "fifo": (lambda f: os.mkfifo(f / "merges.txt"), "merges.txt: expected a regular file, got a special one"),
    "auto-map": (lambda f: _edit(f, "config.json", auto_map={"AutoModel": "x.Y"}), "config.json: .*got auto_map"),
    "tokenizer-map": (
        lambda f: _edit(f, "tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Y", None]}),
        "auto_map",
    ),
    "architecture": (
        lambda f: _edit(f, "config.json", architectures=["EvilForCausalLM"]),
        "architectures: expected one of LlamaForCausalLM, ",
    ),
    "quantised": (lambda f: _edit(f, "config.json", quantization_config={"x": 1}), "not quantised"),
    "index": (_index, "index.json: expected it to name the weights' files"),
    "no-config": (lambda f: (f / "config.json").unlink(), "config.json: expected this file"),
    "no-weights": (lambda f: (f / "model.safetensors").unlink(), "expected weights in safetensors, got none"),
    "not-json": (lambda f: (f / "config.json").write_text("{"), "config.json: expected JSON"),
}


def _split(folder: Path) -> tuple[dict[str, Any], Path, Path]:
    """Two shards of the folder's weights and their index; the parts that tests spoil."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {f"model-0000{n}-of-00002.safetensors": names[n - 1 :: 2] for n in (1, 2)}
    for shard, some in shards.items():
        safetensors.torch.save_file({name: tensors[name] for name in some}, folder / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: shard for shard, some in shards.items() for name in some}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    first, second = (folder / shard for shard in shards)
    return index, first, second


def _overlap(folder: Path) -> None:
    _, first, second = _split(folder)
    second_tensors = safetensors.torch.load_file(second)
    one = next(iter(safetensors.torch.load_file(first).items()))
    safetensors.torch.save_file({**second_tensors, one[0]: one[1]}, second, metadata={"format": "pt"})


def _lack(folder: Path) -> None:
    _, _, second = _split(folder)
    tensors = safetensors.torch.load_file(second)
    del tensors[sorted(tensors)[0]]
    safetensors.torch.save_file(tensors, second, metadata={"format": "pt"})


def _no_metadata(folder: Path) -> None:
    index, _, _ = _split(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index["weight_map"]}))


def _no_index(folder: Path) -> None:
    _split(folder)
    (folder / "model.safetensors.index.json").unlink()


def _grow_tokenizer(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_bytes())
    tokenizer["model"]["vocab"]["beyond"] = 320
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def _config(**members: Any) -> Callable[[Path], None]:
    return lambda folder: _edit(folder, "config.json", **members)


_MOE = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2}
BAD |= {
    "overlap": (
        _overlap,
        "expected this tensor in one file, got it in model-00001-of-00002.safetensors and model-0000",
    ),
    "shard-without-a-tensor": (
        _lack,
        "expected it in 'model-00002-of-00002.safetensors', as .* says, got none that has it",
    ),
    "no-metadata": (_no_metadata, "index.json, metadata: expected an object, got None"),
    "no-index": (_no_index, "index.json: expected it beside several files of weights, got none"),
    "tokenizer-beyond-the-embedding": (_grow_tokenizer, r"expected token ids below the embedding's 320 \(vocab_size\)"),
    "rope-type": (
        _config(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4}),
        "rope_type: expected default or",
    ),
    "key-heads": (
        _config(num_attention_heads=6, num_key_value_heads=4),
        "num_key_value_heads: expected a number that divides 6, num_attention_heads, got 4",
    ),
    "window": (_config(sliding_window=0), "sliding_window: expected a whole number above 0 or null, got 0"),
    "window-text": (_config(sliding_window="8"), "sliding_window: expected a whole number above 0 or null, got '8'"),
    "layer-types": (_config(layer_types=["full_attention"]), "layer_types: expected one for each of 2 layers, got 1"),
    "activation": (_config(hidden_act="swoosh"), "hidden_act: expected silu or gelu_pytorch_tanh, got 'swoosh'"),
    "experts": (_config(num_experts=8), "num_experts: expected 0, got 8"),
    "wrapper": (
        _config(architectures=["Gemma3ForConditionalGeneration"]),
        "architectures: expected a text model, as Gemma3ForCausalLM, got .* bring its text model",
    ),
    "encoder": (_config(architectures=["BertLMHeadModel"]), "or another decoder that transformers has, got BertLM"),
    "model-type": (_config(**_MOE | {"model_type": "llama"}), "model_type: expected qwen3_moe for Qwen3MoeForCausalLM"),
    "library-rope": (
        _config(**_MOE, rope_parameters={"rope_type": "longrope", "rope_theta": 1e4}),
        "rope_type: expected default or linear or llama3 or yarn, got 'longrope'",
    ),
    "chosen-experts": (
        _config(**_MOE | {"num_experts_per_tok": 5}),
        "num_experts_per_tok: expected a whole number from",
    ),
    "many-experts": (_config(**_MOE | {"num_experts": 10**6}), "num_experts: expected a whole number up to 1024"),
    "library-window": (_config(**_MOE, sliding_window=-1), "sliding_window: expected a whole number above 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_is_neither_imported_nor_loaded(folder: Path, tmp_path: Path, case: str) -> None:
    spoil, message = BAD[case]
    spoil(folder)
    output = tmp_path / "output"
    output.mkdir()
    with pytest.raises(BadInput, match=message):
        convert_base(folder, output)
    assert not list(output.iterdir()), "nothing is written before the folder was checked"
    with pytest.raises(BadInput, match=message):
        load_base(folder, quantisation="nf4-double", compute_dtype="float32", device="cpu")


def _publish(folder: Path) -> list[str]:
    """Files of a hub's snapshot that are no part of the model."""
    for name in (
        ".gitattributes",
        "LICENSE",
        "README.md",
        "manifest.json",
        ".safetensors",
        "consolidated.safetensors",
        NF4_FILE,
    ):
        (folder / name).write_text("x")
    (folder / "a name\nof two lines").write_text("x")
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.00.pth").write_bytes(b"x")
    os.mkfifo(folder / "pipe")
    return [".gitattributes", ".safetensors", "LICENSE", "README.md", "consolidated.safetensors", "manifest.json",
            NF4_FILE, "original", "pipe"]  # fmt: skip


def test_what_no_base_needs_is_left_out_and_named(folder: Path, tmp_path: Path) -> None:
    names, others = sorted(os.listdir(folder)), _publish(folder)
    output = tmp_path / "output"
    output.mkdir()
    facts = convert_base(folder, output)
    assert facts["warnings"] == [f"these entries of the folder are not part of the base: {', '.join(others)}, 1 more"]
    assert sorted(os.listdir(output)) == sorted([*names, NF4_FILE])


@pytest.mark.parametrize("name", ["README.md", ".safetensors", "a.safetensors"])
def test_a_sealed_base_holds_nothing_else(folder: Path, name: str) -> None:
    (folder / name).write_text("x")
    with pytest.raises(BadInput, match=f"{name}: expected only .*, got a file outside the allow-list"):
        load_base(folder, quantisation="nf4-double", compute_dtype="float32", device="cpu")


def test_a_window_of_nothing_is_none_where_no_layer_has_one(folder: Path) -> None:
    """As transformers saves Qwen 2 with experts."""
    config = transformers.Qwen2MoeConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=320, num_experts=4, moe_intermediate_size=32, shared_expert_intermediate_size=32,
        max_position_embeddings=256,
    )  # fmt: skip
    config.architectures = ["Qwen2MoeForCausalLM"]
    value = json.loads(config.to_json_string(use_diff=False))
    assert (value["sliding_window"], value["use_sliding_window"]) == (0, False), "the library has changed"
    (folder / "config.json").write_text(json.dumps(value))
    check_folder(folder)
    for changes in ({"use_sliding_window": True}, {"layer_types": ["full_attention", "sliding_attention"]}):
        (folder / "config.json").write_text(json.dumps(value | changes))
        with pytest.raises(BadInput, match="sliding_window: expected a whole number above 0 or null, got 0"):
            check_folder(folder)


def _set(name: str, change: Callable[[torch.Tensor], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        changed = change(tensors[name])
        tensors[name] = changed if isinstance(changed, torch.Tensor) else tensors[name]
        safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


UP, EMBEDDING = "model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"
EXPERT = "model.layers.0.mlp.experts.2.up_proj.weight"
SPOILT: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "shape": (
        "llama",
        _set(UP, lambda one: one[:100].contiguous()),
        rf"{UP}: expected \[128, 64\], .* got \[100, 64\]",
    ),
    "words": (
        "llama",
        _config(vocab_size=330),
        rf"{EMBEDDING}: expected \[330, 64\], as config.json .* got \[320, 64\]",
    ),
    "expert": (
        "qwen3_moe",
        _set(EXPERT, lambda one: one[1:].contiguous()),
        rf"{EXPERT}: expected \[32, 64\], as .*experts.0.up_proj.weight has, got \[31, 64\]",
    ),
    "nan": ("llama", _set(UP, lambda one: one[5, 6].fill_(math.nan)), f"{UP}: expected finite numbers, got NaN"),
    "unused": (
        "llama",
        _set(EMBEDDING, lambda one: one[319, 6].fill_(-math.inf)),
        f"{EMBEDDING}: expected finite numbers, got infinity",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_tensor_that_is_wrong_is_named(tmp_path: Path, case: str) -> None:
    kind, spoil, message = SPOILT[case]
    folder, output = build_base(tmp_path / "base", kind), tmp_path / "output"
    spoil(folder)
    output.mkdir()
    with pytest.raises(BadInput, match=f"^base, {message}") as found:
        convert_base(folder, output)
    assert found.value.code == "bad-input"


def test_weights_of_nothing_but_zeros_are_a_warning(folder: Path, tmp_path: Path) -> None:
    _set(UP, torch.Tensor.zero_)(folder)
    (tmp_path / "output").mkdir()
    facts = convert_base(folder, tmp_path / "output")
    assert facts["warnings"] == [f"all zero, which trained weights are not: {UP}"]


CLAIMS: list[dict[str, Any]] = [
    {"num_hidden_layers": 10**9},
    {"num_hidden_layers": 0},
    {"num_hidden_layers": "2"},
    {"num_hidden_layers": True},
    {"hidden_size": 10**7},
    {"intermediate_size": 10**9},
    {"vocab_size": 10**12},
    {"num_attention_heads": 10**6},
    {"num_key_value_heads": 10**6},
    {"head_dim": 10**6},
    {"max_position_embeddings": 10**18},
    {"max_position_embeddings": 256.0},
    {"num_labels": 10**9},
    {"rope_scaling": {"rope_type": "dynamic", "factor": 1e300}},
    {"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 10**18}},
    {"rope_theta": 10**300},
    {"made_up": -(10**9)},
    {"made_up": [0] * 30_000},
    {"made_up": [[[[[[[[[[0]]]]]]]]]]},
]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: "-".join(claim))
def test_a_configuration_that_claims_what_no_model_has_is_refused_at_once(folder: Path, claim: dict[str, Any]) -> None:
    _edit(folder, "config.json", **claim)
    with pytest.raises(BadInput, match=r"base, config.json.*: expected"):
        check_folder(folder)


PUBLISHED: dict[str, dict[str, Any]] = {
    "llama-3.1-405b": {
        "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128,
        "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072, "rope_theta": 500000.0,
        "rope_scaling": {"factor": 8.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "eos_token_id": [128001, 128008, 128009], "rms_norm_eps": 1e-05, "use_cache": True, "pretraining_tp": 1,
    },
    "qwen2.5-14b-1m": {
        "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48, "num_attention_heads": 40,
        "num_key_value_heads": 8, "vocab_size": 152064, "max_position_embeddings": 1010000, "rope_theta": 10000000,
        "max_window_layers": 48, "sliding_window": 1010000, "rope_scaling": None, "bos_token_id": 151643,
        "dual_chunk_attention_config": {"chunk_size": 262144, "local_size": 8192},
    },
    "qwen3-32b": {
        "hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 64, "num_attention_heads": 64,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960,
        "rope_theta": 1000000, "max_window_layers": 64,
    },
}  # fmt: skip


@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED)
def test_the_largest_published_models_are_within_bounds(config: dict[str, Any]) -> None:
    check_claims(config, "config.json")
    named = {"llama-3.1-405b": 405, "qwen2.5-14b-1m": 14, "qwen3-32b": 32}
    billions = next(named[name] for name, value in PUBLISHED.items() if value is config)
    assert 0.8 < count_least_parameters(config) / billions / 1e9 < 1.02


def test_dimensions_that_the_weights_cannot_have_are_refused_before_any_is_allocated(folder: Path) -> None:
    _edit(folder, "config.json", num_hidden_layers=1_000, hidden_size=65_536, vocab_size=1_000_000)
    with pytest.raises(BadInput, match="expected dimensions of the weights that are there"):
        check_folder(folder)


@pytest.mark.parametrize("length", [2**63, 20 << 20, 10_000])
def test_weights_whose_header_is_longer_than_any_are_refused(folder: Path, length: int) -> None:
    (folder / "model.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(BadInput, match=r"weights: expected safetensors in model.safetensors, with a header"):
        check_folder(folder)


def test_weights_that_are_a_pickle_under_another_name_do_not_run(folder: Path, tmp_path: Path) -> None:
    mark, output = tmp_path / "ran", tmp_path / "output"
    output.mkdir()
    (folder / "model.safetensors").write_bytes(pickle.dumps(_Bomb(mark)))
    with pytest.raises(BadInput, match="weights: expected safetensors"):
        convert_base(folder, output)
    assert not mark.exists()


def test_a_good_folder_is_copied_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    """So that its digests are still the publisher's."""
    output = tmp_path / "output"
    output.mkdir()
    facts = convert_base(folder, output)
    names = check_folder(folder)
    assert check_folder(output, sealed=True) == names, "but for what an import makes of them"
    assert all((folder / name).read_bytes() == (output / name).read_bytes() for name in names)
    assert facts["architecture"] == "LlamaForCausalLM"
    assert facts["dtype"] == "bfloat16"
    assert facts["context_length"] == 256
    assert facts["end_of_turn"] == "<|im_end|>"


def test_a_template_inside_the_tokenizers_configuration_is_taken_out(folder: Path, tmp_path: Path) -> None:
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (tmp_path / "one").mkdir()
    with pytest.raises(BadInput, match="expected a chat template"):
        convert_base(folder, tmp_path / "one")
    _edit(folder, "tokenizer_config.json", chat_template=template)
    (tmp_path / "two").mkdir()
    facts = convert_base(folder, tmp_path / "two")
    assert (tmp_path / "two" / "chat_template.jinja").read_text() == template
    assert "chat template" in facts["warnings"][0]


def test_missing_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    """transformers would fill them with random numbers and continue."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "output").mkdir()
    with pytest.raises(BadInput, match=r"missing_keys.*up_proj"):
        convert_base(folder, tmp_path / "output")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_experts": 0, "rms_norm_eps": "small"},
            "expected a configuration that transformers can build, got .*rms_norm_eps",
        ),
        ({"hidden_act": "swoosh"}, "hidden_act: expected an activation of transformers, got 'swoosh'"),
        ({"moe_intermediate_size": "wide"}, "expected a configuration that transformers can build, got"),
        (
            {"architectures": ["BloomForCausalLM"], "model_type": "bloom"},
            "expected attention of linear layers q_proj, k_proj, v_proj, o_proj, got BloomForCausalLM without q_proj",
        ),
    ],
)
def test_modules_that_adapters_cannot_be_put_on_are_refused_before_weights_are_copied(
    folder: Path, tmp_path: Path, members: dict[str, Any], message: str
) -> None:
    _edit(folder, "config.json", **_MOE | members)
    output = tmp_path / "output"
    output.mkdir()
    with pytest.raises(BadInput, match=f"base, config.json.*{message}"):
        convert_base(folder, output)
    assert not list(output.iterdir())


def test_shards_that_fit_their_index_are_a_base(folder: Path, tmp_path: Path) -> None:
    _split(folder)
    (tmp_path / "output").mkdir()
    assert convert_base(folder, tmp_path / "output")["parameters"] > 0


def test_a_control_token_may_be_beyond_the_embedding(folder: Path) -> None:
    """Gemma 3 has one for images, which no text can hold."""
    tokenizer = json.loads((folder / "tokenizer.json").read_bytes())
    extra = {**tokenizer["added_tokens"][0], "id": 320, "content": "<image>"}
    for special in (True, False):
        changed = {**tokenizer, "added_tokens": [*tokenizer["added_tokens"], {**extra, "special": special}]}
        (folder / "tokenizer.json").write_text(json.dumps(changed))
        if special:
            check_folder(folder)
        else:
            with pytest.raises(BadInput, match="expected token ids below the embedding's 320"):
                check_folder(folder)


def test_a_link_as_the_source_itself_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(BadInput, match="link: expected a folder or a file, got a symbolic link"):
        convert_base(tmp_path / "link", tmp_path / "output")
