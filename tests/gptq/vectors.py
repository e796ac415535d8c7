"""Run by .venv-gptq's interpreter: what gptqmodel makes of layers that it has quantised itself, as JSON.

PYTHONPATH=. .venv-gptq/bin/python -m tests.gptq.vectors FOLDER tests/vectors/gptq.json

Each case: a layer's packed tensors as gptqmodel saved them, the weight that its `torch` backend makes of them, and an
output of that backend. Tensors are base64 of little-endian bytes with a dtype and a shape.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1", "GPTQMODEL_CPU_WORKERS": "2"}

CASES: tuple[dict[str, Any], ...] = (
    {"bits": 4, "group_size": 32, "sym": True, "desc_act": False, "format": "gptq"},
    {"bits": 4, "group_size": 16, "sym": True, "desc_act": True, "format": "gptq"},
    {"bits": 4, "group_size": 32, "sym": False, "desc_act": True, "format": "gptq_v2"},
    {"bits": 8, "group_size": 32, "sym": True, "desc_act": False, "format": "gptq"},
    {"bits": 8, "group_size": -1, "sym": False, "desc_act": False, "format": "gptq_v2", "act_group_aware": False},
)
LAYER = "model.layers.1.self_attn.k_proj"
PARTS = ("qweight", "qzeros", "scales", "g_idx")


def main(folder: Path, target: Path) -> None:
    folder, target = folder.absolute(), target.absolute()
    os.chdir(folder)  # gptqmodel writes its logs where it is started
    import gptqmodel
    import torch

    from scripts.kit.tiny_model import build_base, clauses

    base, texts = build_base(folder / "base"), [text for text, _ in clauses()]
    origin = f"gptqmodel {gptqmodel.__version__}, torch {torch.__version__}, backend torch, layer {LAYER}"
    cases = [_read_case(case, quantise(base, folder / str(number), case, texts)) for number, case in enumerate(CASES)]
    # gptqmodel prints to stdout, too.
    target.write_text(json.dumps({"origin": origin, "cases": cases}, indent=1) + "\n")


def quantise(source: Path, target: Path, case: dict[str, Any], texts: list[str]) -> Path:
    from gptqmodel import GPTQModel, QuantizeConfig

    model = GPTQModel.load(str(source), QuantizeConfig(device="cpu", **case))
    model.quantize(texts, batch_size=1)
    model.save(str(target))
    return target


def _read_case(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the file's own tensors, and the backend's tensors and answers after it has loaded them."""
    import safetensors.torch
    import torch
    from gptqmodel import BACKEND, GPTQModel

    files = sorted(folder.glob("*.safetensors"))
    tensors = {name: one for file in files for name, one in safetensors.torch.load_file(file).items()}
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    model = GPTQModel.load(str(folder), backend=BACKEND.TORCH, device="cpu", dtype=torch.float16)
    module = model.model.get_submodule(LAYER)
    x = torch.randn(3, module.in_features, generator=torch.Generator().manual_seed(1)).half()
    with torch.no_grad():
        output, weight = module(x), module.dequantize_weight()
    return {
        "layer": type(module).__name__,
        "settings": {key: config[key] for key in ("bits", "group_size", "sym", "desc_act", "checkpoint_format")},
        "tensors": {part: _encode(tensors[f"{LAYER}.{part}"]) for part in PARTS},
        "weight": _encode(weight),
        "x": _encode(x),
        "output": _encode(output),
    }


def _encode(tensor: Any) -> dict[str, Any]:
    import torch

    tensor = tensor.detach().cpu().contiguous()
    raw = tensor.flatten().view(torch.uint8)
    data = base64.b64encode(raw.numpy().tobytes()).decode()
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape), "data": data}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
