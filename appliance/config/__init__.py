"""Settings from the environment and `<home>/appliance.toml`, read once and then fixed. Unknown keys are refused."""
