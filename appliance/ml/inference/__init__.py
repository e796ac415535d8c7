"""appliance.ml.inference"""
