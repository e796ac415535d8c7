"""Encoders and parsers, one file per format.

The code is pure: it imports only the standard library, `cryptography` and `appliance.errors`.
"""
