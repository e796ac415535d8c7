"""Recipes: their fields, training methods, differential privacy, parsing and sweeps."""
