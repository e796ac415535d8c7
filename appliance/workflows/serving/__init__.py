"""Serving of adapters to business units."""
