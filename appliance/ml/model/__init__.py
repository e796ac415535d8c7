"""appliance.ml.model"""
