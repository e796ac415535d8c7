"""appliance.formats.artifacts"""
