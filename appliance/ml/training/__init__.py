"""The training loop: methods, losses, optimiser state, privacy, processes of one run."""
