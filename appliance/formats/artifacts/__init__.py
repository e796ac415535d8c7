"""Manifests of sealed folders, and row digests."""
