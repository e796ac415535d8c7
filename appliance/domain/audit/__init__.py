"""The verification of a whole log."""
