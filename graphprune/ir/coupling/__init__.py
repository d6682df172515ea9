"""Which positions must go together: atoms and their joins, units, groups, constraints (DESIGN section 2)."""
