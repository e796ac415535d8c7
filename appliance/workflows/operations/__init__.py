"""appliance.workflows.operations"""
