"""Inference: prompts, decoding, adapter slots, label scores and logit fingerprints."""
