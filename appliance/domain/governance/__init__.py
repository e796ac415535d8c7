"""People, roles, keys, sessions, policy sets, rules versions, and the service's own life."""
