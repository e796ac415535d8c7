"""vLLM as an engine: the same slots, requests and events, computed by another program.

Its settings are read when its modules are loaded. It has no process, no socket, no plugin and no compiler here.
"""

from __future__ import annotations

import os

os.environ.update(
    {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_PLUGINS": "",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "TORCHDYNAMO_DISABLE": "1",
    }
)
