"""Requests and responses of the people's API, defined once for the service and its clients."""
