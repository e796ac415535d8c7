"""appliance.workflows.releases"""
