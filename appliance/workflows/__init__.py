"""One story a file; the order of effects is the text."""
