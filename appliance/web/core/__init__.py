"""appliance.web.core"""
