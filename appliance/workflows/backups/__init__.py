"""Encrypted backups: made, verified, listed, removed and restored."""
