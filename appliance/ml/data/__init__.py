"""Files to rows, rows to tokens."""
