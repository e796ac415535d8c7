"""appliance.cli.support"""
