"""The review page that a reviewer reads before signing, computed from entries of the log and sealed files."""
