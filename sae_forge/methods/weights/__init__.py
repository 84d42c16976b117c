"""Methods that train other weights, a file each."""
