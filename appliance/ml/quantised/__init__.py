"""Weights that come quantised: GPTQ, which stays packed, and FP8 and MXFP4, which become bf16 at import."""
