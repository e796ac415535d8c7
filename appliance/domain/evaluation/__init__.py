"""appliance.domain.evaluation"""
