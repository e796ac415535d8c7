"""Settings: the environment and `<home>/appliance.toml`, read once, frozen. An unknown key is refused."""
