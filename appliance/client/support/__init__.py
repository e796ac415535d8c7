"""appliance.client.support"""
