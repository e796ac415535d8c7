"""appliance.store.ledger.ledger"""
