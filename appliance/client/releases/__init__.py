"""An adapter on its way to a release: its evidence, checked on this side; requests, findings, samples, tries."""
