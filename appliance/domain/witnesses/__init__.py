"""Cosignatures by witnesses."""
