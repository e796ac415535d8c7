"""Runs, from the queue to a sealed adapter, and replays."""
