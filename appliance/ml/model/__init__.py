"""Base models: what may be imported, converting, loading, templates."""
