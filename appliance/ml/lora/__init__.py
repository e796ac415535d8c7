"""Adapters of different rows in one batch: the layout of the batch, and what adds to each row its own adapter."""
