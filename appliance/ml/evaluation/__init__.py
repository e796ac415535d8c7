"""Evaluation: metrics, and a model's results on held-out rows."""
