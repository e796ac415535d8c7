"""Encoders and parsers, one file per format.

The code is pure: it imports only the standard library, `cryptography` and `appliance.errors`. A `parse_*` or `check_*`
function raises BadInput if its input is invalid; a `verify_*` or `open_*` function raises Tampered. A function that
raises something else says so in a section `Raises:`.
"""
