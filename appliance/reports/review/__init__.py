"""The review page for people: its sections in words, and their templates for the console and for a report."""
