"""Pages of reviewers: pending reviews, and an adapter under review."""
