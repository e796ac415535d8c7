"""Slots, requests and tokens of units."""
