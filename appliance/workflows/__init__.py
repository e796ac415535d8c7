"""Workflows: the actions of the service. A module describes one of them in the order in which it acts."""
