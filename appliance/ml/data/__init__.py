"""Datasets: reading files, rendering rows, tokenizing."""
