"""People, roles, keys, sessions, policy sets, rules versions, and the starts and stops of the service."""
