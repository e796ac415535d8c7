"""Metrics, and what a model makes of held-out rows."""
