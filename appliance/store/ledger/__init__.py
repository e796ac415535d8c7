"""The ledger on top of the database: appends, state replay, search and proofs."""
