"""The database: connections, tables, the schema check, and the service processes of a log."""
