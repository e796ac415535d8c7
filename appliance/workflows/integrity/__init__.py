"""Sealed folders and the fold are checked and kept."""
