"""What every door uses: authentication, errors, sockets, TLS, logs."""
