"""Run by .venv-gptq's interpreter: quantises a tiny base with GPTQ, trains a LoRA on it, and prints what came of it.

python -m tests.gptq.lora FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1", "GPTQMODEL_CPU_WORKERS": "2"}

STEPS = 12


def main(folder: Path) -> None:
    from scripts.kit.tiny_model import build_base, clauses

    quantised = quantise(build_base(folder / "base"), folder / "gptq", [text for text, _ in clauses()])
    print(json.dumps(train(quantised)))


def quantise(source: Path, target: Path, texts: list[str]) -> Path:
    """4 bits, in groups of 32 inputs, since the tiny base's layers have 64."""
    from gptqmodel import GPTQModel, QuantizeConfig

    model = GPTQModel.load(str(source), QuantizeConfig(bits=4, group_size=32, device="cpu"))
    model.quantize(texts, batch_size=1)
    model.save(str(target))
    return target


def train(folder: Path) -> dict[str, Any]:
    """Losses and gradients, an evaluation between: gptqmodel's own CPU kernel gives no gradient after one."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, GPTQConfig

    torch.manual_seed(1)
    config = GPTQConfig(bits=4, backend="torch")
    base = AutoModelForCausalLM.from_pretrained(str(folder), quantization_config=config, device_map={"": "cpu"})
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"]))
    ids = torch.randint(5, 300, (2, 24), generator=torch.Generator().manual_seed(1))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser, losses, without = torch.optim.AdamW(weights, lr=0.01), [], 0
    for _ in range(STEPS):
        model.eval()
        with torch.no_grad():
            model(ids)
        model.train()
        loss = model(ids, labels=ids).loss
        loss.backward()
        # A begins with no gradient while B is zero: counted from the second step on.
        without += sum(weight.grad is None or not weight.grad.abs().sum() for weight in weights) if losses else 0
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    layer = type(model.base_model.model.model.layers[0].self_attn.q_proj.base_layer).__name__
    return {"losses": losses, "weights": len(weights), "without_gradient": without, "layer": layer}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
