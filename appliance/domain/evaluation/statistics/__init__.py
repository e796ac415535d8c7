"""Tests and intervals over paired answers, the same bits on every machine (docs/formats/evaluation.md)."""
