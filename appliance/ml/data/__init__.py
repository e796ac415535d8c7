"""appliance.ml.data.rows"""
