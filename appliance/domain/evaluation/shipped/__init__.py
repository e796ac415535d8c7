"""Small evaluation sets that ship with the appliance, for lost general knowledge and changed refusals. CC0-1.0."""
