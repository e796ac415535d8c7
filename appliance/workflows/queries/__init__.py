"""Queries of people and auditors, by subject."""
