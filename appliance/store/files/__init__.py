"""Files: sealed folders, checkpoints, uploads, keys, locks."""
