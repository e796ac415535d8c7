"""appliance.workflows.integrity"""
