"""Texts behind commitments, legal holds, erasure."""
