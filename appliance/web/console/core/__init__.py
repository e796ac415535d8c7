"""Code that all pages share: page definitions, rendering, sessions of browsers, limits and security headers."""
