"""Bases, datasets and their imports."""
