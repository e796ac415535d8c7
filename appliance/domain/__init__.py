"""The vocabulary and the rules. The code is pure: values are frozen and `now` is an argument.

As in `appliance.formats`, a `parse_*` or `read_*` function raises BadInput if its input is invalid, and a `verify_*`
function raises Tampered. A function that raises something else says so in a section `Raises:`.
"""
