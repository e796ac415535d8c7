"""Commands for plans, gates, records, replays and sweeps of runs."""
