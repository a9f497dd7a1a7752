"""The whole loop on one machine, with real processes: `coda demo`."""
