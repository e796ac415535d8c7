"""Questions about the state, now and then."""
