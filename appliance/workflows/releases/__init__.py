"""Admission, reviews and exports."""
