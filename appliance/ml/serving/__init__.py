"""The inference engine, and loading of an exported adapter on its base."""
