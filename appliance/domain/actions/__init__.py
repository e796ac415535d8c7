"""The action registry, which lists all orders, events and rules, and their application to entries."""
