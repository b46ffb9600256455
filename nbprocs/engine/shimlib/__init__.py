"""What runs inside the shim, and the wire that it shares with the kernel: standard library only, nothing of nbprocs but this package."""
