"""The HTTP listeners: routes, authentication, and the mapping from errors to status codes."""
