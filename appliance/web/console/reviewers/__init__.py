"""Pages of reviewers: what waits for them, and an adapter under review."""
