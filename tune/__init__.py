"""Search spaces and studies on top of the training and inspection jobs."""
