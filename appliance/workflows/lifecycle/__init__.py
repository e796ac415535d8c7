"""The appliance begins, starts, beats and ends."""
