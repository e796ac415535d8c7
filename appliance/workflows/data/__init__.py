"""appliance.workflows.data"""
