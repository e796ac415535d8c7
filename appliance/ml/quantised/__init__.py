"""Checkpoints with quantised weights: GPTQ, which stays packed, and FP8 and MXFP4, which an import converts to bf16."""
