"""Pages of releases, for units and release owners."""
