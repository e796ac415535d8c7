"""Base models, data, training, evaluation and inference: the only package that imports torch.

Importing any module of this package first disables the libraries' network access: model hubs, telemetry, and the
`kernels` package, with which bitsandbytes and transformers would fetch compiled code. The sandbox blocks the network in
any case; these settings prevent the attempts. They must precede the import of the libraries, which read them once.
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
    # Waiting threads spin for some microseconds, about as long as waking takes, then sleep. If they sleep at once, a
    # process that runs alone trains 30 % slower; if they spin ten times as long, two processes that share the cores
    # train at a third of their speed. Measured on two cores; read when torch's OpenMP is loaded. A worker may have set
    # the spin count before it imports this package (`worker/serve.py`).
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "1000"),
    # A CPU kernel is compiled and cached for every shape, up to 1,024 in each of two caches. With rows of all lengths
    # they grew by 25 MB a step, to 0.8 GB. These capacities suffice for the kernels of one pack. Read when torch is
    # loaded.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "LRU_CACHE_CAPACITY": "64",
    # Deterministic matrix products on CUDA; read when cuBLAS starts.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}

os.environ.update(_SETTINGS)
# The libraries create half a million permanent objects. By default the garbage collector scans them after every 700 new
# ones, which takes a fifth of a worker's start.
gc.set_threshold(100_000, *gc.get_threshold()[1:])
# bitsandbytes warns at every start that the `kernels` package is missing.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# None makes an import fail. bitsandbytes then does not compile its few functions with torch, for which it would load
# the whole compiler: that takes half a second at every start, and gives other bits on a host with a C compiler.
for _name in ("kernels", "torch._inductor.compile_fx"):
    sys.modules.setdefault(_name, None)  # type: ignore[arg-type]
