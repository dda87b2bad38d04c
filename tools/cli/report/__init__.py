"""`refledger report`: one build as one HTML page."""
