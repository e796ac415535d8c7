"""The rows of the state's tables, one frozen value for each thing that entries describe, and the keys of the rows."""
