"""Database and disk: tables, ledger, artifacts and keyring."""
