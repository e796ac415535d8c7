"""Evaluation of adapters: gates, items, verdicts and what they are compared with."""
