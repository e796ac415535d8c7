"""A unit's applications: the agent that renews their tokens."""
