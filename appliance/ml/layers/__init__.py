"""The table of supported decoder architectures and their arithmetic, forward and backward."""
