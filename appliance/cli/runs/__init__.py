"""appliance.cli.runs"""
