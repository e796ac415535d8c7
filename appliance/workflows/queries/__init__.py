"""appliance.workflows.queries"""
