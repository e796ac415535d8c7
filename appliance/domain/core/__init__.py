"""appliance.domain.core"""
