"""appliance.workflows.core"""
