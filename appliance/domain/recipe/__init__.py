"""Recipes and training methods."""
