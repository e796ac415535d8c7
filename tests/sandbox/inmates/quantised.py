"""The whole stack of a real worker: imports, a product of matrices, a 4-bit linear forward and backward."""

from __future__ import annotations

import sys

import bitsandbytes
import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

from appliance.formats.core.frame import write_frame

torch.manual_seed(0)
layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4").to("cpu")
given = torch.randn(4, 64, dtype=torch.bfloat16, requires_grad=True)
answer = layer(given)
answer.float().sum().backward()
save_file({"answer": answer.detach()}, "answer.safetensors")
same = torch.equal(load_file("answer.safetensors")["answer"], answer)
result = {
    "same": same,
    "gradient": bool(given.grad is not None and given.grad.abs().sum() > 0),
    "product": tuple((torch.ones(300, 300) @ torch.ones(300, 300))[0, :1].tolist()),
    "packed": str(layer.weight.dtype),
    "threads": torch.get_num_threads(),
    "versions": [peft.__version__, transformers.__version__],
}
write_frame(sys.stdout.buffer, {"frame": "result", **result})
