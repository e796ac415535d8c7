"""appliance.workflows.serving"""
