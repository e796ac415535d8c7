"""Units are answered."""
