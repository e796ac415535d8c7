"""Training runs, their step records, training checkpoints and replays."""
