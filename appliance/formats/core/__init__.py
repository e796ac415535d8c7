"""Canonical JSON, digests, times, commitments, Merkle trees and frames."""
