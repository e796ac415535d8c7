"""What may not lie in a base is refused by name, before anything reads it."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import BadInput
from appliance.ml.model.base import load_base
from appliance.ml.model.bounds import check_claims, count_least_parameters
from appliance.ml.model.convert import convert_base
from appliance.ml.model.folder import check_folder


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
    "other": (lambda f: (f / "README.md").write_text("x"), "README.md: .*outside the allow-list"),
    "manifest": (lambda f: (f / "manifest.json").write_text("{}"), "manifest.json: .*outside the allow-list"),
    "hidden": (lambda f: (f / ".safetensors").write_text("x"), ".safetensors: .*outside the allow-list"),
    "folder": (lambda f: (f / "original").mkdir(), "original: expected files only, got a folder"),
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


@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_is_neither_imported_nor_loaded(folder: Path, tmp_path: Path, case: str) -> None:
    spoil, message = BAD[case]
    spoil(folder)
    output = tmp_path / "output"
    output.mkdir()
    with pytest.raises(BadInput, match=message):
        convert_base(folder, output)
    assert not list(output.iterdir()), "nothing is written before the folder was checked"
    if case == "manifest":
        return  # a sealed folder carries its own
    with pytest.raises(BadInput, match=message):
        load_base(folder, quantisation="nf4-double", compute_dtype="float32", device="cpu")


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
    assert check_folder(output) == names
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
    """transformers would fill them with random numbers and go on."""
    import safetensors.torch

    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "output").mkdir()
    with pytest.raises(BadInput, match=r"missing_keys.*up_proj"):
        convert_base(folder, tmp_path / "output")


def test_a_link_as_the_source_itself_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(BadInput, match="link: expected a folder or a file, got a symbolic link"):
        convert_base(tmp_path / "link", tmp_path / "output")
