"""Code that all listeners share: authentication, errors, sockets, TLS and logs."""
