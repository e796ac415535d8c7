"""The API's client: it builds and signs orders with the caller's own key, verifies the log, and follows runs."""
