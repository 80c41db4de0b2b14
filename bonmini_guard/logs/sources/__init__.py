"""What other tools log of their calls, as draws of our rows: one file a tool."""
