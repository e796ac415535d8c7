"""appliance.domain.operations"""
