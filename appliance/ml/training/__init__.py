"""appliance.ml.training"""
