"""appliance.workflows.runs"""
