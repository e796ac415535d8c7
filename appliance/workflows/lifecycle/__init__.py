"""appliance.workflows.lifecycle"""
