"""The one door: routes, authentication, and the table from error to status."""
