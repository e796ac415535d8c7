"""Signing in the browser: the form of an order, what is signed, passkeys, and sign-in by one."""
