"""Training runs, training checkpoints and replays."""
