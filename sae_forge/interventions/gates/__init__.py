"""When an edit is in force: one file a gate, and the table of them."""
