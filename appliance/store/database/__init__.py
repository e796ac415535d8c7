"""appliance.store.database"""
