"""The API for units, compatible with OpenAI's."""
