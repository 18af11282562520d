"""Review by people: the queue, their answers, and the local page."""
