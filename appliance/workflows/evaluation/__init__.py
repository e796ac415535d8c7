"""The check of evaluation items, the verdict by the gates that were fixed before, and its recomputation."""
