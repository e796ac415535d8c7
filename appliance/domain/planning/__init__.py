"""appliance.domain.planning"""
