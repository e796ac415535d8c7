"""appliance.cli.audit"""
