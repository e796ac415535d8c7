"""appliance.domain.queries"""
