"""Signing in the browser: order forms, statements, passkeys, and sign-in with a passkey."""
