"""Pages of operators: runs, bases, datasets, imports."""
