"""Sessions, callers, and what administrators order."""
