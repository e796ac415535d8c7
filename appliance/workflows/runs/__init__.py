"""Training runs, from the queue to a sealed adapter, and their replays."""
