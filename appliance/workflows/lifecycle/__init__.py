"""The life of the appliance: founding, start, heartbeat, following other processes, and end."""
