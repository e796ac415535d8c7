"""appliance.web.operations.health"""
