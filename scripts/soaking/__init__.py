"""Serving under churn: eight units ask all at once while everything around their adapters changes and fails."""
