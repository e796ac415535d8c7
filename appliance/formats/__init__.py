"""Bytes to values and back, one file a format. Pure: the standard library, `cryptography` and `appliance.errors`."""
