"""The console: pages for browsers, rendered here, by audience."""
