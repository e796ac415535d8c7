"""Database and disk: tables, the ledger, artifacts and keys."""
