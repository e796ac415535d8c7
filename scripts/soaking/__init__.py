"""Serving under change: eight units send requests at once while their adapters change and parts fail."""
