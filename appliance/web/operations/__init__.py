"""Health, metrics, traces, notifications and limits."""
