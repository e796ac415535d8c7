"""appliance.domain.governance.people"""
