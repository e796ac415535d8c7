"""The console: pages for browsers, rendered by the service, in one folder per audience."""
