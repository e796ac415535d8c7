"""The ledger on top of the database: appends, fold, search, proofs."""
