"""Adapters, reviews, releases, admission and exports."""
