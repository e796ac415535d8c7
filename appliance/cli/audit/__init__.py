"""Commands for auditors and witnesses."""
