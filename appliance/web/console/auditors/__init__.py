"""Pages of auditors: the log, an entry, the past, checkpoints."""
