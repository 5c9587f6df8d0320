"""Files that outlive a call: leases, the result cache and their locks, safe against a crash."""
