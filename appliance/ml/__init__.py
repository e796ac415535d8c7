"""Base models, data, the training loop, metrics and the engine: the home of torch.

Importing any module of this room first shuts the libraries' ways out: their hubs, their telemetry, and the `kernels`
package, through which bitsandbytes and transformers would fetch compiled code. The sandbox is what keeps us in; this
keeps the libraries from trying, and must come before they are imported, since they read these settings once.
"""

from __future__ import annotations

import gc
import logging
import os
import sys

_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_EVALUATE_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    # Threads that wait look for some microseconds, about as long as waking takes, then sleep. Where they sleep at once,
    # a process that is alone trains 30 % slower; where they look ten times as long, two processes that share the cores
    # train at a third of their pace. Measured on two cores; read when torch's OpenMP is loaded. A worker may have set
    # how long before it imports this (`worker/serve.py`).
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "1000"),
    # A CPU kernel is compiled for every shape and kept, 1,024 of them in each of two caches: with rows of all lengths
    # that grew by 25 MB a step, to 0.8 GB. These hold the kernels of one pack. Read when torch is loaded.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "LRU_CACHE_CAPACITY": "64",
    # Deterministic matrix products on CUDA; read when its library starts.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}

os.environ.update(_SETTINGS)
# The libraries bring half a million objects that stay. By default they are looked through after every 700 new
# ones, which takes a fifth of a worker's start.
gc.set_threshold(100_000, *gc.get_threshold()[1:])
# Says at every start that the package is missing.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# None makes an import fail. bitsandbytes then leaves the few functions alone that it would have torch compile, for
# which it loads the whole compiler: half a second at every start, and other bits on a host that has a C compiler.
for _name in ("kernels", "torch._inductor.compile_fx"):
    sys.modules.setdefault(_name, None)  # type: ignore[arg-type]
