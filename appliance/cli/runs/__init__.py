"""Commands about plans, records and replays of runs."""
