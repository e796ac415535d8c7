"""Prompts, decoding, adapters in slots, scores and probes."""
