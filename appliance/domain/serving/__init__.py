"""Serving: slots, requests and tokens of units."""
