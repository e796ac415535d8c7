"""The vocabulary of all subjects: entries, orders, events, records, the state, policy, and the input of a rule."""
