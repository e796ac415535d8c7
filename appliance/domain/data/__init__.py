"""appliance.domain.data"""
