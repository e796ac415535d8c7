"""appliance.domain.retention"""
