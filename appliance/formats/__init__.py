"""Encoders and parsers, one file per format.

The code is pure: it imports only the standard library, `cryptography` and `appliance.errors`. A `parse_*` or `check_*`
function raises BadInput if its input is invalid. A `verify_*` or `open_*` function raises Tampered; for a malformed key
it raises BadInput, and Unavailable for a key that this build cannot use. A function that raises something else says so
in a section `Raises:`.
"""
