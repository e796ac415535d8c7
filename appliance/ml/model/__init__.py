"""Base models: import checks, conversion, loading, chat templates."""
