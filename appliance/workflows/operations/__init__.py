"""`appliance doctor`, and the status and storage of a running service."""
