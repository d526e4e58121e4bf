"""The service's doors, one file each. A handler parses, calls and responds; it computes nothing."""
