"""Queries about the state, now and at earlier entries."""
