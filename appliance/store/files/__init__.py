"""appliance.store.files"""
