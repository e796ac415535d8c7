"""Integrity checks."""
