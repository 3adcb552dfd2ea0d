"""What a run leaves behind, and the numbers that follow from it. Nothing here runs a network."""
