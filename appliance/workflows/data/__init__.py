"""Uploads, checks of rows, and imports of bases, datasets and validation sets."""
