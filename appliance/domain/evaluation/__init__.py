"""What an adapter is compared with."""
