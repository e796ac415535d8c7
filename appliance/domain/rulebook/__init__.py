"""appliance.domain.rulebook"""
