"""Predictions of the memory, disk and time of a run, before it is ordered."""
