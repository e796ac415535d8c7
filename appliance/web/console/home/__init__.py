"""The first page: the pending items of the viewer."""
