"""appliance.web.units"""
