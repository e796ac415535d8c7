"""appliance.ml.evaluation.evaluation"""
