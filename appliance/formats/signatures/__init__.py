"""Keys, envelopes, statements and bundles."""
