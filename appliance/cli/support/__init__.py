"""Code that all commands share: options, output, signing and times."""
