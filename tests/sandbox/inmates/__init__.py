"""Worker modules that misbehave: they run inside the sandbox, started by the tests."""
