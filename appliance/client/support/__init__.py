"""What every client function uses: the connection, keys, sessions, the log, orders."""
