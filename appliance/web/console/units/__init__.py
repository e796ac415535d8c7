"""Pages of a unit: its questions to adapters, its requests, and its limits."""
