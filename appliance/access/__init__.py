"""The site's Cedar policies. They can refuse what the built-in rules allow, never the reverse."""
