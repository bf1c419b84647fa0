"""Values that all packages share: rows and answers, ledger entries, progress, protocols and the clock."""
