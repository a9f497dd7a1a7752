"""Accuracy: protocols without leaks, every method through the device's own code, paired statistics. `coda evaluate`."""
