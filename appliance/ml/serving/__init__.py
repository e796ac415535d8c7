"""appliance.ml.serving"""
