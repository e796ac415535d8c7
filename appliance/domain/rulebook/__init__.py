"""Every verb, event and rule in one registry, and their application to an entry."""
