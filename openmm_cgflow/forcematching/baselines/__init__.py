"""Students fitted to frames without a teacher: what flow-matching is measured by."""
