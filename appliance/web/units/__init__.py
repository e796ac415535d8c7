"""OpenAI's interface for units."""
