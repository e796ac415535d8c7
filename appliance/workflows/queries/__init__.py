"""What people read, by subject."""
