"""Admission of adapters, the review page, and exports."""
