"""The database: connection, tables, catalogue, claim."""
