"""The API for people."""
