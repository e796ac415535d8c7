"""What the state remembers: a frozen value for each thing that an entry spoke of, and what it is called there."""
