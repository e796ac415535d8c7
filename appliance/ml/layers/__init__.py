"""What decoders are made of: the table of architectures, and their arithmetic, forward and backward."""
