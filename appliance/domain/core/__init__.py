"""What every subject uses: entries, orders, events, records, the state, policy, and what a rule sees."""
