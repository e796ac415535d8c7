"""appliance.workflows.witnesses"""
