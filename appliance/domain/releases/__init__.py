"""appliance.domain.releases"""
