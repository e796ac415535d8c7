"""The API's client: builds and signs orders with the caller's own key, and follows a run."""
