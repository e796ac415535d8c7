"""A unit's API keys, and the applications that renew them."""
