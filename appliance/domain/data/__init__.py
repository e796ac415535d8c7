"""Rules for base models, datasets, validation sets and their imports."""
