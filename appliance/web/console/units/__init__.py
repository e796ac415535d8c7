"""Pages of a unit: asking its adapters, its requests, its limits."""
