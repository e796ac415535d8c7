"""Pages of units and release owners: what is released to whom."""
