"""appliance.domain.serving.slots"""
