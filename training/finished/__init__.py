"""Looking at finished models: scored on any labelled data, and compared with each other."""
