"""Where a worker runs: the sandbox and the process in it. No torch."""
