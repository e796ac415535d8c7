"""appliance.workflows.governance"""
