"""appliance.domain.audit"""
