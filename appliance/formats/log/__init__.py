"""appliance.formats.log"""
