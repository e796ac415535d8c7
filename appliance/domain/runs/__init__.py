"""appliance.domain.runs"""
