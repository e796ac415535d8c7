"""Pages of auditors: the log, an entry, earlier states, and checkpoints."""
