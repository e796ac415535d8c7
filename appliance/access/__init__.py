"""The site's own policies, in Cedar: they may tighten the invariants and never loosen them."""
