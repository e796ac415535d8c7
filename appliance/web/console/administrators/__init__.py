"""Pages of administrators: people, orders, policy and health."""
