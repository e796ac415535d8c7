"""appliance.formats.signatures"""
