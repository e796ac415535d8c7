"""appliance.runners.walls"""
