"""Requests to witnesses and their answers."""
