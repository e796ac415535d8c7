"""The engine, and an exported adapter on its base."""
