"""Pages of operators: runs, bases, datasets and imports."""
