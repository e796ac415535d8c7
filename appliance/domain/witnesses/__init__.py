"""appliance.domain.witnesses"""
