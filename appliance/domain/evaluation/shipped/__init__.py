"""Small sets that come with the appliance: what an adapter forgot, or refuses otherwise than before. CC0-1.0."""
