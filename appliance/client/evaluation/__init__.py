"""Gate sets at hand, what they can show, and verdicts proved and computed again."""
