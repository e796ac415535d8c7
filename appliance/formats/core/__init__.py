"""appliance.formats.core"""
