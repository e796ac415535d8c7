"""Base models and their layers: loading, converting, templates, and the layers by hand."""
