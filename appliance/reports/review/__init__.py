"""The review page as HTML with plots, drawn from its JSON alone."""
