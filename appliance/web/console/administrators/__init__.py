"""Pages of administrators: people, orders, policy, health."""
