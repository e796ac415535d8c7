"""appliance.web.people"""
