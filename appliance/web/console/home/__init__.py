"""The first page: what waits for the person who looks."""
