"""The parts that all client functions use: the connection, keys, sessions, the log, orders."""
