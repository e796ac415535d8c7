"""PURE. The vocabulary and the rules; values are frozen and `now` is an argument."""
